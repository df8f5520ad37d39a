//! The fuzz targets: `cargo test` replays the committed corpus and adds random bytes, `cargo bolero test <name>` fuzzes.

use std::ffi::OsStr;
use std::path::Path;

/// Random inputs for each target in `cargo test`; a fuzzer ignores this.
const ITERATIONS: usize = 2000;

const INPUT_BYTES_MAX: usize = 512;

#[test]
fn framer() {
    bolero::check!()
        .with_iterations(ITERATIONS)
        .with_max_len(INPUT_BYTES_MAX)
        .for_each(sluice_fuzz::framer);
}

#[test]
fn decode_client() {
    bolero::check!()
        .with_iterations(ITERATIONS)
        .with_max_len(INPUT_BYTES_MAX)
        .for_each(sluice_fuzz::decode_client);
}

#[test]
fn decode_server() {
    bolero::check!()
        .with_iterations(ITERATIONS)
        .with_max_len(INPUT_BYTES_MAX)
        .for_each(sluice_fuzz::decode_server);
}

#[test]
fn topics() {
    bolero::check!()
        .with_iterations(ITERATIONS)
        .with_max_len(INPUT_BYTES_MAX)
        .for_each(sluice_fuzz::topics);
}

#[test]
fn session() {
    bolero::check!()
        .with_iterations(ITERATIONS)
        .with_max_len(INPUT_BYTES_MAX)
        .for_each(sluice_fuzz::session);
}

#[test]
fn document() {
    bolero::check!()
        .with_iterations(ITERATIONS)
        .with_max_len(INPUT_BYTES_MAX)
        .for_each(sluice_fuzz::document);
}

/// True exactly when a fuzzer named the input, by a hash.
fn is_found(name: &OsStr) -> bool {
    name.len() == 40 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}

/// bolero passes over a corpus that it does not find in silence; this replays it by its path, and seeds with every cut.
#[test]
fn the_corpus_is_there_and_replays() {
    type Target = fn(&[u8]);
    let targets: [(&str, Target); 6] = [
        ("framer", sluice_fuzz::framer),
        ("decode_client", sluice_fuzz::decode_client),
        ("decode_server", sluice_fuzz::decode_server),
        ("topics", sluice_fuzz::topics),
        ("session", sluice_fuzz::session),
        ("document", sluice_fuzz::document),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/__fuzz__");
    for (name, target) in targets {
        let mut count = 0;
        for entry in std::fs::read_dir(root.join(name).join("corpus")).unwrap() {
            let entry = entry.unwrap();
            let input = std::fs::read(entry.path()).unwrap();
            // What fuzzing found is one of many cuts already.
            let first = if is_found(&entry.file_name()) {
                input.len()
            } else {
                0
            };
            for len in first..=input.len() {
                target(&input[..len]);
            }
            count += 1;
        }
        assert!(count >= 8, "{name} has {count} seeds");
    }
}
