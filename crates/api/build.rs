//! Compiles our .proto files without a system protoc: protox parses them, tonic-prost-build writes the Rust.

use std::error::Error;

const PROTOS: [&str; 8] = [
    "proto/authorization.proto",
    "proto/ca.proto",
    "proto/cri.proto",
    "proto/discovery.proto",
    "proto/l7.proto",
    "proto/node.proto",
    "proto/otlp.proto",
    "proto/workload.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    // Ordered maps: the same resource must always encode to the same bytes, because its version is their hash.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
