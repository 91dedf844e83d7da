//! What the tree says of itself holds.
#![allow(clippy::unwrap_used)]

use niwaki_tests::workspace;
use std::path::{Path, PathBuf};

/// The files of these folders that end in `.rs`, without what cargo builds.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let mut open: Vec<PathBuf> = folders
        .iter()
        .map(|folder| workspace().join(folder))
        .collect();
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).unwrap();
            open.extend(entries.map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    assert!(found.len() > 100, "there are more sources than that");
    found
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn unsafe_code_is_where_contributing_says() {
    let contributing = read(workspace().join("CONTRIBUTING.md"));
    for path in sources(&["runtime", "bindings", "tools"]) {
        let relative = path
            .strip_prefix(workspace())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let allows = read(&path)
            .lines()
            .any(|line| line.contains("allow(unsafe_code"));
        // A test may count allocations.
        let is_known = relative.starts_with("runtime/kernels/")
            || relative.contains("/tests/")
            || contributing.contains(&format!("`{relative}`"));
        assert!(
            !allows || is_known,
            "CONTRIBUTING.md does not name {relative}"
        );
    }
    for named in contributing
        .split('`')
        .filter(|name| name.ends_with(".rs") && name.contains("/src/"))
    {
        assert!(
            read(workspace().join(named)).contains("unsafe_code"),
            "{named} needs no exception"
        );
    }
}

#[test]
fn the_version_stands_in_one_place_and_examples_of_it_are_not_stale() {
    let version = env!("CARGO_PKG_VERSION");
    for (file, before) in [
        ("README.md", "io.niwaki:niwaki-android:"),
        ("android/README.md", "io.niwaki:niwaki-android:"),
    ] {
        let text = read(workspace().join(file));
        let said: Vec<&str> = text
            .split(before)
            .skip(1)
            .map(|rest| rest.split(['"', '\'', ')', '`']).next().unwrap())
            .collect();
        assert!(!said.is_empty(), "{file} shows no {before}");
        assert!(
            said.iter().all(|said| *said == version),
            "{file}: {said:?}, not {version}"
        );
    }
    for file in [
        "android/build.gradle.kts",
        "android/niwaki/build.gradle.kts",
        "android/sample/build.gradle.kts",
        "ios/Package.swift",
    ] {
        assert!(
            !read(workspace().join(file)).contains(&format!("\"{version}\"")),
            "{file} repeats the version of Cargo.toml"
        );
    }
}

/// Rooms that the documentation speaks of and that are not there yet.
const TO_COME: [&str; 4] = [
    "runtime/guard",
    "runtime/retrieve",
    "runtime/store",
    "tools/cli/src/serve",
];

#[test]
fn documents_name_files_that_exist() {
    let roots = [
        "runtime/",
        "tools/",
        "bindings/",
        "android/",
        "ios/",
        "tests/",
        "docs/",
        ".ci/",
    ];
    let mut documents = vec![
        "README.md".to_owned(),
        "CONTRIBUTING.md".into(),
        "SECURITY.md".into(),
        "RELEASE.md".into(),
    ];
    for entry in std::fs::read_dir(workspace().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            documents.push(format!("docs/{name}"));
        }
    }
    assert!(documents.len() > 10, "{documents:?}");
    let mut named = 0;
    for document in documents {
        let text = read(workspace().join(&document));
        // Without what stands in fences: commands and drawings.
        let prose = text.split("```").step_by(2);
        let code = prose.flat_map(|prose| prose.split('`').skip(1).step_by(2));
        for word in code.flat_map(str::split_whitespace) {
            let path = word.trim_end_matches(['/', '.', ',']);
            let is_path = roots.iter().any(|root| path.starts_with(root))
                && path
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
            if !is_path || TO_COME.contains(&path) {
                continue;
            }
            named += 1;
            assert!(
                workspace().join(path).exists(),
                "{document} names {path}, which is not there"
            );
        }
    }
    assert!(named > 50, "{named} paths");
    for room in TO_COME {
        assert!(
            !workspace().join(room).exists(),
            "{room} is there: take it off the list"
        );
    }
}

#[test]
fn sources_stay_small() {
    for path in sources(&["runtime", "bindings", "tools", "tests"]) {
        let lines = read(&path).lines().count();
        assert!(
            lines <= 800,
            "{} has {lines} lines: what two things does it hold?",
            path.display()
        );
    }
}
