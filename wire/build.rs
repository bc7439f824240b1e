//! Generates the gRPC code from `proto/` with a compiler written in Rust, so that nobody has to install `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["authority.proto", "policy.proto", "workload.proto"];
    for file in files {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    // Private keys travel in a workload.proto message: bytes, so that a clone is not a copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
