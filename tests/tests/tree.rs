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
