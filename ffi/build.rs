//! Compiles the shim into a shared object and makes the bindings, when the feature `dpdk` is on.
//!
//! The shared object is embedded in the crate and loaded at run time, so no program that links
//! this crate needs libdpdk to start.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "dpdk")]
    if let Err(problem) = dpdk::build() {
        println!(
            "cargo::error={problem}; `apt-get install libdpdk-dev libclang-14-dev pkg-config gcc`, \
             or build with --no-default-features"
        );
    }
}

#[cfg(feature = "dpdk")]
mod dpdk {
    use std::env;
    use std::panic::AssertUnwindSafe;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    const HEADER: &str = "shim/shim.h";
    const SOURCE: &str = "shim/shim.c";

    /// The plain functions of DPDK that we call; inline ones are in the shim.
    const FUNCTIONS: &[&str] = &[
        "mr_.*",
        "rte_eal_init",
        "rte_eal_iova_mode",
        "rte_strerror",
        "rte_extmem_register",
        "rte_extmem_unregister",
        "rte_dev_probe",
        "rte_dev_remove",
        "rte_dev_name",
        "rte_dev_dma_map",
        "rte_dev_dma_unmap",
        "rte_eth_dev_get_port_by_name",
        "rte_eth_dev_info_get",
        "rte_eth_dev_configure",
        "rte_eth_dev_adjust_nb_rx_tx_desc",
        "rte_eth_rx_queue_setup",
        "rte_eth_tx_queue_setup",
        "rte_eth_dev_start",
        "rte_eth_dev_stop",
        "rte_eth_dev_close",
        "rte_eth_dev_is_removed",
        "rte_eth_dev_socket_id",
        "rte_eth_dev_get_mtu",
        "rte_eth_dev_set_mtu",
        "rte_eth_macaddr_get",
        "rte_eth_promiscuous_enable",
        "rte_eth_promiscuous_disable",
        "rte_eth_promiscuous_get",
        "rte_eth_link_get_nowait",
        "rte_eth_stats_get",
        "rte_eth_xstats_get",
        "rte_eth_xstats_get_names",
        "rte_eth_rx_queue_info_get",
        "rte_thread_register",
        "rte_thread_unregister",
    ];

    const TYPES: &[&str] =
        &["rte_eth_conf", "rte_eth_dev_info", "rte_eth_link", "rte_eth_stats", "rte_ether_addr"];

    const CONSTANTS: &[&str] = &["MR_.*", "rte_eth_rx_mq_mode_.*", "RTE_DEV_.*"];

    /// Everything; the error is one line without a full stop.
    pub fn build() -> Result<(), String> {
        for input in [HEADER, SOURCE] {
            println!("cargo::rerun-if-changed={input}");
        }
        for variable in ["CC", "PKG_CONFIG", "PKG_CONFIG_PATH", "LIBCLANG_PATH"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
        // Raw output: the pkg-config crate drops `-include rte_config.h` and `-march`, without
        // which the inline functions compile to something else than what libdpdk expects.
        let cflags = pkg_config("--cflags")?;
        let libs = pkg_config("--libs")?;
        let version = pkg_config("--modversion")?.concat();
        if !version.starts_with("22.11") {
            return Err(format!("libdpdk 22.11 is needed, pkg-config finds {version}"));
        }
        compile_shim(&out.join("libmillrace_dpdk.so"), &cflags, &libs)?;
        bind(&out.join("bindings.rs"), &cflags)
    }

    fn pkg_config(what: &str) -> Result<Vec<String>, String> {
        let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
        let output = Command::new(&program)
            .args([what, "libdpdk"])
            .output()
            .map_err(|error| format!("{program} could not be run ({error})"))?;
        if !output.status.success() {
            return Err("libdpdk 22.11 is not installed (pkg-config does not find it)".into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    fn compile_shim(object: &Path, cflags: &[String], libs: &[String]) -> Result<(), String> {
        let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
        let output = Command::new(&compiler)
            .args(["-shared", "-fPIC", "-O3", "-g0", "-Wall", "-Wextra", "-Werror", "-std=gnu11"])
            .args(["-D_GNU_SOURCE", "-DALLOW_EXPERIMENTAL_API", "-Wno-unused-parameter"])
            // The shim names what it uses and so cannot be loaded half-resolved.
            .args(["-Wl,-z,defs", "-Wl,-z,now", "-pthread"])
            .args(cflags)
            .arg("-o")
            .arg(object)
            .arg(SOURCE)
            .args(libs)
            .output()
            .map_err(|error| format!("the C compiler `{compiler}` could not be run ({error})"))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let first = text.lines().find(|line| line.contains("error")).unwrap_or("no message");
        Err(format!("the C shim does not compile: {first}"))
    }

    fn bind(to: &Path, cflags: &[String]) -> Result<(), String> {
        let mut builder = bindgen::Builder::default()
            .header(HEADER)
            .clang_args(cflags)
            .clang_args(["-D_GNU_SOURCE", "-DALLOW_EXPERIMENTAL_API"])
            .dynamic_library_name("Api")
            .dynamic_link_require_all(true)
            .layout_tests(false)
            .derive_default(true)
            .prepend_enum_name(false)
            .generate_comments(false)
            .merge_extern_blocks(true);
        builder = FUNCTIONS.iter().fold(builder, bindgen::Builder::allowlist_function);
        builder = TYPES.iter().fold(builder, bindgen::Builder::allowlist_type);
        builder = CONSTANTS.iter().fold(builder, bindgen::Builder::allowlist_var);
        // bindgen panics where libclang is missing; a panic is not one clear line.
        std::panic::set_hook(Box::new(|_| {}));
        let made = std::panic::catch_unwind(AssertUnwindSafe(move || builder.generate()));
        drop(std::panic::take_hook());
        made.map_err(|_| "libclang is not installed (bindgen needs it)".to_owned())?
            .map_err(|error| format!("no bindings: {}", error.to_string().replace('\n', " ")))?
            .write_to_file(to)
            .map_err(|error| format!("{}: {error}", to.display()))
    }
}
