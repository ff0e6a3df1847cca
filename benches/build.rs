//! Compiles the peers that are C programs on DPDK, when the feature `dpdk` is on.
//!
//! They are embedded into `millrace-bench`, which runs them as processes. DPDK is found as `ffi` finds
//! it: by the raw output of pkg-config.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_DPDK").is_none() {
        return;
    }
    if let Err(problem) = build() {
        println!(
            "cargo::error={problem}; `apt-get install libdpdk-dev pkg-config gcc`, or build with \
             --no-default-features"
        );
    }
}

const SOURCE: &str = "peers/onvm_hop.c";

/// The error is one line without a full stop.
fn build() -> Result<(), String> {
    println!("cargo::rerun-if-changed={SOURCE}");
    for variable in ["CC", "PKG_CONFIG", "PKG_CONFIG_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = std::env::var("OUT_DIR").map_err(|_| "OUT_DIR is not set")?;
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let output = std::process::Command::new(&compiler)
        .args(["-O3", "-g0", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-D_GNU_SOURCE"])
        .arg("-pthread")
        .args(pkg_config("--cflags")?)
        .args(["-o", &format!("{out}/onvm_hop"), SOURCE])
        .args(pkg_config("--libs")?)
        .output()
        .map_err(|error| format!("the C compiler `{compiler}` could not be run ({error})"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let first = text.lines().find(|line| line.contains("error")).unwrap_or("no message");
    Err(format!("{SOURCE} does not compile: {first}"))
}

fn pkg_config(what: &str) -> Result<Vec<String>, String> {
    let program = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
    let output = std::process::Command::new(&program)
        .args([what, "libdpdk"])
        .output()
        .map_err(|error| format!("{program} could not be run ({error})"))?;
    if !output.status.success() {
        return Err("libdpdk 22.11 is not installed (pkg-config does not find it)".into());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().map(str::to_owned).collect())
}
