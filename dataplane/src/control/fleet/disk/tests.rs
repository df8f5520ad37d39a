//! Tables for the files of the state directory: whole, damaged, cut, of another version, and who may read them.

use std::os::unix::fs::PermissionsExt;

use sluice_proto::v1::row::Kind;

use super::*;

fn held(number: u64, rules: i64) -> Held {
    let rows: Vec<v1::Row> = (0..rules)
        .map(|order| v1::Row {
            name: format!("r{order}"),
            kind: Some(Kind::Rule(v1::Rule {
                order: Some(order),
                ..v1::Rule::default()
            })),
            ..v1::Row::default()
        })
        .collect();
    let rows = Inventory::from_messages(&rows).expect("good rows");
    Held {
        id: v1::GenerationId {
            store: vec![7; 16],
            number,
            digest: rows.digest().to_vec(),
        },
        rows,
    }
}

fn open() -> (tempfile::TempDir, StateDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let state = StateDir::open(&folder.path().join("state")).expect("a state directory");
    (folder, state)
}

#[test]
fn a_directory_that_everybody_may_write_to_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state");
    fs::create_dir(&path).expect("made");
    for (mode, is_taken) in [
        (0o700, true),
        (0o755, true),
        (0o770, true),
        (0o777, false),
        (0o1777, false),
        (0o702, false),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        let opened = StateDir::open(&path);
        assert_eq!(opened.is_ok(), is_taken, "{mode:o}: {opened:?}");
        if let Err(error) = opened {
            assert!(error.to_string().contains("chmod 700"), "{error}");
        }
    }
}

#[test]
fn a_generation_comes_back_as_it_was_kept_and_the_last_one_counts() {
    let (_folder, state) = open();
    assert!(state.read_generation().expect("readable").is_none());
    for (number, rules) in [(1, 0), (2, 1), (3, 5000), (4, 3)] {
        let kept = held(number, rules);
        state.write_generation(&kept).expect("written");
        let read = state.read_generation().expect("readable").expect("there");
        assert_eq!(read.id, kept.id);
        assert_eq!(read.rows.digest(), kept.rows.digest());
        assert_eq!(read.rows.len(), kept.rows.len());
    }
}

#[test]
fn a_row_that_is_held_does_not_keep_the_file_it_was_read_from() {
    struct Read {
        bytes: Vec<u8>,
        _alive: std::sync::Arc<()>,
    }
    impl AsRef<[u8]> for Read {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    let (_folder, state) = open();
    state.write_generation(&held(1, 100)).expect("written");
    let file = fs::read(state.path.join(GENERATION_FILE)).expect("readable");
    let alive = std::sync::Arc::new(());
    let bytes = Bytes::from_owner(Read {
        bytes: file,
        _alive: std::sync::Arc::clone(&alive),
    });
    let read = generation(&bytes).expect("good");
    drop(bytes);
    assert_eq!(std::sync::Arc::strong_count(&alive), 1);
    assert_eq!(read.rows.len(), 100);
}

#[test]
fn a_file_changed_anywhere_or_cut_anywhere_is_refused() {
    let (_folder, state) = open();
    let kept = held(1, 3);
    state.write_generation(&kept).expect("written");
    let path = state.path.join(GENERATION_FILE);
    let good = fs::read(&path).expect("readable");
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).expect("written");
        assert!(state.read_generation().is_err(), "byte {at}");
        fs::write(&path, &good[..at]).expect("written");
        assert!(state.read_generation().is_err(), "cut at {at}");
    }
    let mut longer = good;
    longer.push(0);
    fs::write(&path, longer).expect("written");
    assert!(state.read_generation().is_err());
}

#[test]
fn another_version_is_told_apart_from_damage() {
    let (_folder, state) = open();
    let mut bytes = GENERATION_MAGIC.to_vec();
    *bytes.last_mut().expect("a version") = 9;
    bytes.extend_from_slice(&[0; 64]);
    fs::write(state.path.join(GENERATION_FILE), bytes).expect("written");
    let error = state.read_generation().expect_err("another version");
    assert!(error.to_string().contains("another version"), "{error}");
    let aside = state.set_generation_aside().expect("moved");
    assert!(aside.exists());
    assert!(state.read_generation().expect("readable").is_none());
}

#[test]
fn rows_that_do_not_add_up_to_the_digest_are_refused_though_the_checksum_is_right() {
    let (_folder, state) = open();
    let mut kept = held(1, 3);
    kept.id.digest = vec![0; 32];
    state.write_generation(&kept).expect("written");
    let error = state.read_generation().expect_err("refused");
    assert!(error.to_string().contains("add up"), "{error}");
}

#[test]
fn the_identity_comes_back_and_is_shown_to_nobody() {
    let (_folder, state) = open();
    assert!(state.read_identity().expect("readable").is_none());
    for is_member in [false, true] {
        let identity = Identity {
            node: "edge-7".into(),
            secret: Zeroizing::new([0xab; 32]),
            is_member,
        };
        state.write_identity(&identity).expect("written");
        let read = state.read_identity().expect("readable").expect("there");
        assert_eq!(
            (read.node.as_str(), *read.secret, read.is_member),
            ("edge-7", [0xab; 32], is_member)
        );
        let shown = format!("{read:?}");
        assert!(!shown.contains("171") && !shown.contains("abab"), "{shown}");
    }
    let path = state.path.join(IDENTITY_FILE);
    let good = fs::read(&path).expect("readable");
    for at in 0..good.len() {
        fs::write(&path, &good[..at]).expect("written");
        assert!(state.read_identity().is_err(), "cut at {at}");
    }
}

#[test]
fn nobody_else_may_read_what_is_kept() {
    let (_folder, state) = open();
    // What a killed process left, open to all.
    let left = state.path.join("generation.new");
    fs::write(&left, b"half").expect("written");
    fs::set_permissions(&left, fs::Permissions::from_mode(0o666)).expect("changed");
    state.write_generation(&held(1, 1)).expect("written");
    let identity = Identity {
        node: "n".into(),
        secret: Zeroizing::new([1; 32]),
        is_member: false,
    };
    state.write_identity(&identity).expect("written");
    for entry in fs::read_dir(&state.path).expect("a folder") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("known").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    let mode = fs::metadata(&state.path).expect("known").permissions();
    assert_eq!(mode.mode() & 0o777, 0o700);
    assert!(!left.exists());
}

#[test]
fn one_process_at_a_time() {
    let (folder, state) = open();
    let error = StateDir::open(&folder.path().join("state")).expect_err("taken");
    assert!(error.to_string().contains("another process"), "{error}");
    drop(state);
    StateDir::open(&folder.path().join("state")).expect("free again");
}

#[test]
fn a_write_that_fails_leaves_what_was_there() {
    let (_folder, state) = open();
    state.write_generation(&held(1, 2)).expect("written");
    let failed = state.replace(GENERATION_FILE, |out| {
        out.put(&[0; 100_000])?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    });
    assert!(failed.is_err());
    let read = state.read_generation().expect("readable").expect("there");
    assert_eq!(read.id.number, 1);
    assert!(!state.path.join("generation.new").exists());
}

/// Set in the process that a test starts where the disk is small: the folder there.
const SMALL_DISK: &str = "SLUICE_TEST_SMALL_DISK";

#[test]
fn a_full_disk_refuses_a_generation_and_keeps_the_one_before() {
    if let Some(folder) = std::env::var_os(SMALL_DISK) {
        return on_a_small_disk(Path::new(&folder));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let run = "exec \"$0\" --exact control::fleet::disk::tests::a_full_disk_refuses_a_generation_and_keeps_the_one_before --nocapture";
    let mounted = format!("mount -t tmpfs -o size=256k none \"${SMALL_DISK}\" && {run}");
    // Where a process gets no mounts of its own, files that may not grow stand for the disk.
    let limited = format!("trap '' XFSZ; ulimit -f 512 && {run}");
    let scripts = [
        ("unshare", vec!["-rm", "sh", "-c", &mounted]),
        ("sh", vec!["-c", &limited]),
    ];
    let mut said = String::new();
    for (program, args) in scripts {
        let output = std::process::Command::new(program)
            .args(args)
            .arg(std::env::current_exe().expect("this program"))
            .env(SMALL_DISK, folder.path())
            .output();
        let Ok(output) = output else { continue };
        said = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat();
        if said.contains("running 1 test") {
            assert!(output.status.success(), "{program}: {said}");
            return;
        }
    }
    panic!("neither a small disk nor small files: {said}");
}

fn on_a_small_disk(folder: &Path) {
    let state = StateDir::open(&folder.join("state")).expect("a state directory");
    state.write_generation(&held(1, 100)).expect("fits");
    for _ in 0..3 {
        let error = state.write_generation(&held(2, 20_000)).expect_err("full");
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::FileTooLarge];
        assert!(kinds.contains(&error.kind()), "{error}");
        assert!(!state.path.join("generation.new").exists());
        let read = state.read_generation().expect("readable").expect("there");
        assert_eq!(read.id.number, 1);
    }
    state.write_generation(&held(3, 100)).expect("room again");
}
