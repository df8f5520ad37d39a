//! Compiles the contract. `protox` reads the files, so no `protoc` is needed.

use std::error::Error;
use std::path::Path;

const FILES: [&str; 3] = [
    "fleet/v1/policy.proto",
    "fleet/v1/fleet.proto",
    "control/v1/control.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join("fleet.bin"),
        protox::prost::Message::encode_to_vec(&descriptors),
    )?;
    let mut config = prost_build::Config::new();
    // A stored password must not reach a log by way of `{:?}`; src/lib.rs writes this one by hand.
    config.skip_debug([
        ".sluice.fleet.v1.User",
        ".sluice.fleet.v1.RowChange",
        ".sluice.fleet.v1.EnrollRequest",
        ".sluice.control.v1.CreateTokenResponse",
        ".sluice.control.v1.CreateJoinTokenResponse",
        ".sluice.control.v1.DocumentPart",
        ".sluice.control.v1.BackupPart",
    ]);
    // Rows are many and kept as they came: a reference to the bytes received, not a copy of them.
    config.bytes([
        ".sluice.fleet.v1.RowChange.row",
        ".sluice.control.v1.DocumentPart.text",
        ".sluice.control.v1.BackupPart.bytes",
    ]);
    compile(config, descriptors)?;
    Ok(())
}

#[cfg(not(feature = "grpc"))]
fn compile(
    mut config: prost_build::Config,
    descriptors: protox::prost_reflect::prost_types::FileDescriptorSet,
) -> std::io::Result<()> {
    config.compile_fds(descriptors)
}

#[cfg(feature = "grpc")]
fn compile(
    config: prost_build::Config,
    descriptors: protox::prost_reflect::prost_types::FileDescriptorSet,
) -> std::io::Result<()> {
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)
}
