//! The scripts that build what apps ship run in the shells that their machines have: a Mac's bash is 3.2.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Shells that may read a script of `#!/bin/sh`, as far as this machine has them. `NIWAKI_TEST_SHELL` names one more,
/// such as a bash 3.2.
fn shells() -> Vec<Vec<String>> {
    let mut shells: Vec<Vec<String>> = ["sh", "dash", "busybox sh", "mksh", "bash"]
        .iter()
        .map(|shell| shell.split(' ').map(str::to_owned).collect())
        .collect();
    shells.extend(std::env::var("NIWAKI_TEST_SHELL").map(|shell| vec![shell]));
    shells.retain(|shell| command(shell).args(["-c", ":"]).output().is_ok());
    shells
}

fn command(shell: &[String]) -> Command {
    let mut command = Command::new(&shell[0]);
    command.args(&shell[1..]);
    command
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// The scripts, with their texts.
fn scripts() -> Vec<(PathBuf, String)> {
    let mut scripts = Vec::new();
    for folder in ["android", "bindings", "ios", "tests/mobile"] {
        for entry in fs::read_dir(repository().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension() == Some(OsStr::new("sh")) {
                let text = fs::read_to_string(&path).unwrap();
                scripts.push((path, text));
            }
        }
    }
    assert!(scripts.len() > 10);
    scripts
}

#[test]
fn scripts_are_plain_sh_but_for_those_that_need_debian() {
    for (path, text) in scripts() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let bash = ["check.sh", "stub_ndk.sh"].contains(&name);
        let first = if bash {
            "#!/usr/bin/env bash"
        } else {
            "#!/bin/sh"
        };
        assert_eq!(text.lines().next(), Some(first), "{}", path.display());
    }
}

#[test]
fn every_shell_reads_the_scripts_that_are_for_it() {
    for (path, text) in scripts() {
        for shell in shells() {
            let plain = text.starts_with("#!/bin/sh");
            if plain || shell[0].contains("bash") {
                let read = command(&shell).arg("-n").arg(&path).output().unwrap();
                assert!(read.status.success(), "{shell:?} {path:?}: {read:?}");
            }
        }
    }
}

#[test]
fn no_script_uses_what_bash_3_2_lacks() {
    // What only running a line would tell: all of it is read without complaint.
    let newer = [
        ("^^}", "upper case"),
        (",,}", "lower case"),
        ("declare -A", "associative arrays"),
        ("local -n", "references"),
        ("mapfile", "lines to arrays"),
        ("readarray", "lines to arrays"),
        ("&>>", "appending both outputs"),
        ("|&", "pipes of both outputs"),
        (";;&", "going on to the next case"),
        ("coproc", "coprocesses"),
        ("globstar", "stars over folders"),
        ("wait -n", "waiting for any job"),
        ("@Q}", "quoting"),
        ("[-1]", "the last of an array"),
        ("EPOCHSECONDS", "the time"),
    ];
    for (path, text) in scripts() {
        for (word, what) in newer {
            assert!(!text.contains(word), "{path:?} uses {what}: {word}");
        }
    }
}

/// A folder that stands for an NDK, and a cargo that writes down what it was called with.
struct Pretended {
    folder: tempfile::TempDir,
}

impl Pretended {
    fn new() -> Pretended {
        let pretended = Pretended {
            folder: tempfile::Builder::new()
                .prefix("with space ")
                .tempdir()
                .unwrap(),
        };
        pretended.program(
            "ndk/toolchains/llvm/prebuilt/some-x86_64/bin/aarch64-linux-android26-clang",
            "",
        );
        pretended.program(
            "cargo",
            r#"case $1 in
  metadata) printf '{"packages":[],"target_directory":"%s","version":1}' "$CARGO_TARGET_DIR" ;;
  *)
    { printf '%s\n' "$@"; env | grep -E '^(CC_|AR_|CARGO_TARGET_.*_LINKER|NDK_)' | sort; } >"$CALLED"
    mkdir -p "$CARGO_TARGET_DIR/$3/dist"
    echo library >"$CARGO_TARGET_DIR/$3/dist/libniwaki_bindings.so"
    ;;
esac"#,
        );
        pretended
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\nset -eu\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run<'a>(
        &self,
        shell: &[String],
        script: &str,
        arguments: impl IntoIterator<Item = &'a OsStr>,
    ) -> Output {
        command(shell)
            .arg(repository().join(script))
            .args(arguments)
            .env("CARGO", self.path("cargo"))
            .env("CARGO_TARGET_DIR", self.path("built"))
            .env("ANDROID_NDK_HOME", self.path("ndk"))
            .env("CALLED", self.path("called"))
            .output()
            .unwrap()
    }
}

#[test]
fn the_library_for_phones_is_built_in_every_shell_and_where_cargo_is_told_to() {
    for shell in shells() {
        let pretended = Pretended::new();
        let output = pretended.path("output");
        let built = pretended.run(
            &shell,
            "android/build-native.sh",
            [output.as_os_str(), OsStr::new("arm64-v8a")],
        );
        assert!(built.status.success(), "{shell:?}: {built:?}");
        let library = fs::read_to_string(output.join("arm64-v8a/libniwaki_bindings.so")).unwrap();
        assert_eq!(library, "library\n");

        let compilers = pretended.path("ndk/toolchains/llvm/prebuilt/some-x86_64/bin");
        let compilers = compilers.to_str().unwrap();
        let linker = repository().join("android/link-native.sh");
        let expected = format!(
            "rustc\n--target\naarch64-linux-android\n--profile\ndist\n-p\nniwaki-bindings\n--lib\n--crate-type\ncdylib\n\
             AR_aarch64_linux_android={compilers}/llvm-ar\n\
             CARGO_TARGET_AARCH64_LINUX_ANDROID_LINKER={}\n\
             CC_aarch64_linux_android={compilers}/aarch64-linux-android26-clang\n\
             NDK_CLANG={compilers}/aarch64-linux-android26-clang\nNDK_COMPILERS={compilers}\n",
            linker.display()
        );
        let called = fs::read_to_string(pretended.path("called")).unwrap();
        assert_eq!(called, expected, "{shell:?}");
    }
}

#[test]
fn an_unknown_abi_and_a_missing_ndk_are_said() {
    for shell in shells() {
        let pretended = Pretended::new();
        let output = pretended.path("output");
        let script = "android/build-native.sh";
        let unknown = pretended.run(&shell, script, [output.as_os_str(), OsStr::new("x86")]);
        let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
        assert!(
            !unknown.status.success() && said.contains("arm64-v8a, x86_64"),
            "{said}"
        );
        // The pretended NDK has no compilers for it.
        let missing = pretended.run(&shell, script, [output.as_os_str(), OsStr::new("x86_64")]);
        let said = String::from_utf8_lossy(&missing.stderr).into_owned();
        assert!(
            !missing.status.success() && said.contains("is ANDROID_NDK_HOME an NDK"),
            "{said}"
        );
    }
}

#[test]
fn the_linker_leaves_constructors_out_and_hides_what_is_not_uniffi_s() {
    for shell in shells() {
        let pretended = Pretended::new();
        for tool in ["clang", "llvm-objcopy"] {
            pretended.program(tool, &format!(r#"printf '%s\n' {tool} "$@" >>"$CALLED""#));
        }
        let linked = command(&shell)
            .arg(repository().join("android/link-native.sh"))
            .args(["a b.rcgu.o", "std.o", "-o", "library.so"])
            .env("NDK_CLANG", pretended.path("clang"))
            .env("NDK_COMPILERS", pretended.folder.path())
            .env("CALLED", pretended.path("called"))
            .output()
            .unwrap();
        assert!(linked.status.success(), "{shell:?}: {linked:?}");
        let called = fs::read_to_string(pretended.path("called")).unwrap();
        assert_eq!(
            called,
            "llvm-objcopy\n--remove-section=.init_array\n--wildcard\n--set-symbol-visibility=blake3_*=hidden\n\
             a b.rcgu.o\nclang\na b.rcgu.o\nstd.o\n-o\nlibrary.so\n",
            "{shell:?}"
        );
    }
}
