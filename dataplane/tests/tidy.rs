//! The repository checks its own rules: what a reviewer would otherwise have to remember.
//!
//! Reads the sources as text. A rule that is worth breaking is changed here, with its reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of the top level that hold our sources; those that do not exist yet are passed over.
const FOLDERS: &[&str] = &[
    "dataplane",
    "controlplane",
    "proto",
    "bench",
    "loadtest",
    "deploy",
];

/// Longest file that is still one noun; tests may be longer, they are read in pieces.
const FILE_LINES_MAX: usize = 800;

/// Where `unsafe` may stand: the engines, and allocators that count in tests.
const UNSAFE_ALLOWED: &[&str] = &[
    "dataplane/src/ring/",
    "bench/src/bin/forward_uring.rs", // the floor the ring is compared with, in one file
    "dataplane/tests/allocations.rs",
    "dataplane/policy/tests/allocation.rs",
    "dataplane/tests/tidy.rs",
];

/// The modules of a crate, each with those it may know.
type Floors = &'static [(&'static str, &'static [&'static str])];

/// Where which floors hold.
const HOUSES: &[(&str, Floors)] = &[
    ("dataplane/src/", FLOORS),
    ("controlplane/src/", CONTROL_FLOORS),
];

/// Who may know whom inside the data plane (`dataplane/README.md`, "Floors"). A new edge is a change to discuss.
const FLOORS: Floors = &[
    ("clock", &[]),
    ("metrics", &[]),
    ("ring", &["clock"]),
    ("session", &["clock", "metrics"]),
    ("node", &["clock", "metrics", "ring", "session"]),
    ("upstream", &["clock", "metrics", "node", "ring"]),
    (
        "shard",
        &["clock", "metrics", "node", "ring", "session", "upstream"],
    ),
    ("config", &["ring"]),
    ("logging", &["config", "node"]),
    (
        "control",
        &[
            "clock", "config", "logging", "metrics", "node", "ring", "session", "upstream",
        ],
    ),
    (
        "admin",
        &["clock", "config", "control", "logging", "metrics", "node"],
    ),
    ("cli", &["clock", "config", "logging"]),
    (
        "boot",
        &[
            "admin", "clock", "config", "control", "logging", "metrics", "node", "ring", "session",
            "shard", "upstream",
        ],
    ),
];

/// The same for the control plane (`controlplane/README.md`).
const CONTROL_FLOORS: Floors = &[
    ("domain", &[]),
    ("clock", &["domain"]),
    ("store", &["clock", "domain"]),
    ("readiness", &["store"]),
    ("auth", &["clock", "domain", "store"]),
    ("release", &["auth", "clock", "domain", "store"]),
    ("connections", &["auth"]),
    (
        "certificate",
        &["auth", "clock", "config", "connections", "domain"],
    ),
    ("fleet", &["auth", "clock", "domain", "release", "store"]),
    (
        "api",
        &[
            "auth",
            "certificate",
            "clock",
            "domain",
            "fleet",
            "readiness",
            "release",
            "store",
        ],
    ),
    ("admin", &["connections", "readiness"]),
    ("config", &["domain"]),
    ("logging", &["config"]),
    ("metrics", &["domain", "fleet"]),
    (
        "server",
        &["api", "auth", "certificate", "connections", "readiness"],
    ),
    (
        "boot",
        &[
            "admin",
            "api",
            "auth",
            "certificate",
            "clock",
            "config",
            "connections",
            "domain",
            "fleet",
            "logging",
            "metrics",
            "readiness",
            "release",
            "server",
            "store",
        ],
    ),
    ("ctl", &["clock", "domain", "store"]), // a client: the store only to restore a backup
];

#[test]
fn every_source_file_says_what_it_owns() {
    let bare: Vec<_> = sources()
        .into_iter()
        .filter(|path| !read(path).trim_start().starts_with("//!"))
        .map(|path| shown(&path))
        .collect();
    assert!(bare.is_empty(), "files without a `//!` header: {bare:#?}");
}

#[test]
fn unsafe_stays_in_the_ring() {
    let stray: Vec<_> = sources()
        .into_iter()
        .filter(|path| {
            !UNSAFE_ALLOWED
                .iter()
                .any(|allowed| shown(path).starts_with(allowed))
        })
        .filter(|path| {
            code_lines(&read(path))
                .any(|line| line.contains("unsafe ") || line.contains("allow(unsafe_code"))
        })
        .map(|path| shown(&path))
        .collect();
    assert!(
        stray.is_empty(),
        "`unsafe` outside dataplane/src/ring: {stray:#?}"
    );
}

#[test]
fn dependencies_point_down_the_floors() {
    let mut broken = BTreeSet::new();
    for path in sources() {
        let name = shown(&path);
        let house = HOUSES
            .iter()
            .find_map(|(root, floors)| Some((name.strip_prefix(root)?, *floors)));
        let Some((inside, floors)) = house else {
            continue;
        };
        let module = inside
            .split(['/', '.'])
            .next()
            .unwrap_or_default()
            .to_owned();
        if matches!(module.as_str(), "main" | "lib" | "bin") {
            continue;
        }
        let Some((_, allowed)) = floors.iter().find(|(floor, _)| *floor == module) else {
            broken.insert(format!("{name}: module `{module}` stands on no floor"));
            continue;
        };
        let text = read(&path);
        for line in code_lines(&text) {
            for used in line
                .match_indices("crate::")
                .map(|(at, found)| &line[at + found.len()..])
            {
                let target: String = used
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let known = floors.iter().any(|(floor, _)| *floor == target);
                if known && target != module && !allowed.contains(&target.as_str()) {
                    broken.insert(format!("{name}: `{module}` may not know `{target}`"));
                }
            }
        }
    }
    assert!(broken.is_empty(), "edges against the floors: {broken:#?}");
}

#[test]
fn files_stay_readable() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|path| !shown(path).contains("/tests/") && !shown(path).ends_with("tests.rs"))
        .map(|path| (read(&path).lines().count(), shown(&path)))
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .collect();
    assert!(long.is_empty(), "split these by their nouns: {long:#?}");
}

#[test]
fn nothing_is_left_unfinished() {
    // Spelled in halves, so that this file does not find itself.
    let banned = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("#[ign", "ore"),
        concat!("thread::sl", "eep"),
    ];
    let mut found = Vec::new();
    for path in sources() {
        for (number, line) in read(&path).lines().enumerate() {
            if let Some(word) = banned.iter().find(|word| line.contains(**word)) {
                found.push(format!("{}:{}: {word}", shown(&path), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "finish these: {found:#?}");
}

#[test]
fn every_folder_has_its_map() {
    let mut missing = Vec::new();
    for folder in FOLDERS
        .iter()
        .map(|folder| root().join(folder))
        .filter(|folder| folder.is_dir())
    {
        let readme = folder.join("README.md");
        let Ok(text) = fs::read_to_string(&readme) else {
            missing.push(format!("{} does not exist", shown(&readme)));
            continue;
        };
        for entry in children(&folder).filter(|entry| entry.is_dir()) {
            let name = entry
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if !text.contains(&name) {
                missing.push(format!("{} does not mention {name}/", shown(&readme)));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn paths_named_in_readmes_exist() {
    let mut dead = BTreeSet::new();
    for readme in files(&root())
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "md"))
    {
        let text = read(&readme);
        let folder = readme.parent().unwrap_or(Path::new("."));
        for path in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|span| looks_like_a_path(span))
        {
            let path = path.trim_end_matches('/');
            let places = [
                root().join(path),
                folder.join(path),
                folder.join("src").join(path),
            ];
            if !places.iter().any(|place| place.exists()) {
                dead.insert(format!("{}: `{path}`", shown(&readme)));
            }
        }
    }
    assert!(dead.is_empty(), "paths that do not exist: {dead:#?}");
}

/// A span of code that names a file or folder of the repository: relative, no spaces, ends like a source or a folder.
fn looks_like_a_path(span: &str) -> bool {
    let ends = [".rs", ".md", ".yaml", ".toml", ".proto", ".service", "/"];
    span.contains('/')
        && !span.contains(|c: char| c.is_whitespace() || "*{}<>$:|#+".contains(c))
        && !span.starts_with(['/', '.', '~'])
        && !span.starts_with("target/")
        && ends.iter().any(|end| span.ends_with(end))
}

/// Lines without comments. Good enough for text rules; strings are not parsed.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
}

fn sources() -> Vec<PathBuf> {
    FOLDERS
        .iter()
        .flat_map(|folder| files(&root().join(folder)))
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in children(folder) {
        let name = entry
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') || name == "target" || name == "node_modules" {
            continue;
        }
        if entry.is_dir() {
            found.extend(files(&entry));
        } else {
            found.push(entry);
        }
    }
    found.sort();
    found
}

fn children(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}
