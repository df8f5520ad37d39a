//! Compiles the contract. `protox` reads the files, so no `protoc` is needed.

use std::error::Error;
use std::path::Path;

const FILES: [&str; 2] = ["fleet/v1/policy.proto", "fleet/v1/fleet.proto"];

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
    config.skip_debug([".sluice.fleet.v1.User", ".sluice.fleet.v1.RowChange"]);
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
