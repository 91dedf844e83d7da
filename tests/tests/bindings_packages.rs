//! What the packages for apps declare agrees with what they hold.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

#[test]
fn the_privacy_manifest_declares_what_the_library_asks_of_the_system() {
    // Apple's "required reason APIs", as far as code without Objective-C can call them.
    let categories: [(&str, &[&str]); 3] = [
        (
            "FileTimestamp",
            &[
                "stat",
                "fstat",
                "fstatat",
                "lstat",
                "getattrlist",
                "fgetattrlist",
                "getattrlistat",
                "getattrlistbulk",
            ],
        ),
        ("SystemBootTime", &["mach_absolute_time"]),
        ("DiskSpace", &["statfs", "statvfs", "fstatfs", "fstatvfs"]),
    ];
    // The same code asks the same of Android, and there the whole list is checked.
    let symbols = text("tests/mobile/bionic_symbols.txt");
    let asked: Vec<&str> = symbols
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    let manifest = text("ios/Sources/Niwaki/PrivacyInfo.xcprivacy");
    for (category, functions) in categories {
        assert_eq!(
            manifest.contains(&format!(
                "<string>NSPrivacyAccessedAPICategory{category}</string>"
            )),
            functions.iter().any(|function| asked.contains(function)),
            "{category}"
        );
    }
    assert_eq!(manifest.matches("NSPrivacyAccessedAPICategory").count(), 1);
    assert!(manifest.contains("<key>NSPrivacyTracking</key>\n\t<false/>"));
    assert!(text("ios/Package.swift").contains("PrivacyInfo.xcprivacy\")]"));
}

#[test]
fn the_swift_sources_use_nothing_that_the_privacy_manifest_would_have_to_name() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ios/Sources/Niwaki");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = fs::read_to_string(&path).unwrap();
        for api in [
            "UserDefaults",
            "systemUptime",
            "mach_absolute_time",
            "creationDate",
            "modificationDate",
            "contentModificationDateKey",
            "volumeAvailableCapacity",
            "systemFreeSize",
            "systemSize",
            "activeInputModes",
        ] {
            assert!(!source.contains(api), "{path:?} uses {api}");
        }
    }
}

#[test]
fn the_sample_installs_where_the_library_runs() {
    let filter = |path: &str| {
        let build = text(path);
        let line = build.lines().find(|line| line.contains("abiFilters"));
        line.map(|line| line.trim().to_owned()).unwrap()
    };
    let library = filter("android/niwaki/build.gradle.kts");
    assert_eq!(filter("android/sample/build.gradle.kts"), library);
    assert!(text("android/README.md").contains(&library));
    let script = text("android/build-native.sh");
    assert!(script.contains("set -- arm64-v8a x86_64"));
    assert!(library.contains("listOf(\"arm64-v8a\", \"x86_64\")"));
}

#[test]
fn the_swift_package_is_for_the_platforms_of_its_native_library() {
    let package = text("ios/Package.swift");
    assert!(package.contains("platforms: [.iOS(.v16)],"), "{package}");
    let script = text("ios/build-xcframework.sh");
    let targets = script
        .lines()
        .find_map(|line| line.strip_prefix("[ $# -gt 0 ] || set -- "))
        .unwrap();
    assert!(
        targets
            .split(' ')
            .all(|target| target.contains("-apple-ios")),
        "{targets}"
    );
    assert!(script.contains("IPHONEOS_DEPLOYMENT_TARGET=16.0"));
}

#[test]
fn gradle_s_wrapper_stays_at_the_version_that_is_pinned() {
    let pinned = text("android/gradle/wrapper/gradle-wrapper.properties");
    let build = text("android/build.gradle.kts");
    let version = build
        .split("gradleVersion = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap();
    assert!(
        pinned.contains(&format!("gradle-{version}-bin.zip")),
        "{version}\n{pinned}"
    );
}
