//! Where and with what a reading was made.

use super::source;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use sysinfo::System;

/// Commit, machine and library versions, the same for all readings of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// Commit of the sources that the program was built from, or `unknown`.
    pub git_commit: String,
    /// Whether these sources differ from that commit; `None` where that cannot be known.
    pub git_dirty: Option<bool>,
    /// Name of the machine.
    pub host: String,
    /// Operating system and its version.
    pub os: String,
    /// Processor, as it calls itself.
    pub cpu_model: String,
    /// Hardware threads that the process may use.
    pub cpu_threads: u64,
    /// The SIMD features that decide which kernels run, separated by spaces, and `LOWBIT_SIMD` where it forbids some.
    pub cpu_features: String,
    /// Main memory in bytes.
    pub memory_bytes: u64,
    /// Graphics processor, where there is one.
    pub gpu: Option<String>,
    /// Version of its driver.
    pub driver: Option<String>,
    /// Version of this crate.
    pub lowbit_version: String,
    /// Version of candle that this crate was built with.
    pub candle_version: String,
    /// Version of the compiler.
    pub rustc: String,
    /// `release` or `debug`: speed of a debug build means nothing.
    pub profile: String,
}

impl Provenance {
    /// Looks once per process; later calls give the same answer.
    pub fn gather() -> Self {
        static GATHERED: OnceLock<Provenance> = OnceLock::new();
        GATHERED.get_or_init(look).clone()
    }

    /// The same as a line of JSON, with the hash of the sources that the program was built from: what a notebook notes of
    /// whoever made its outputs.
    pub fn note() -> String {
        let mut note = serde_json::json!(Self::gather());
        note["sources"] = option_env!("LOWBIT_SOURCES").into();
        note.to_string()
    }
}

fn look() -> Provenance {
    let (cpu_model, memory_bytes) = processor_and_memory();
    let (git_commit, git_dirty) = commit();
    let (gpu, driver) = gpu();
    Provenance {
        git_commit,
        git_dirty,
        host: System::host_name().unwrap_or_else(|_| "unknown".into()),
        os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.into()),
        cpu_model: cpu_model.unwrap_or_else(System::cpu_arch),
        cpu_threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        cpu_features: features(),
        memory_bytes,
        gpu,
        driver,
        lowbit_version: env!("CARGO_PKG_VERSION").into(),
        candle_version: env!("LOWBIT_CANDLE_VERSION").into(),
        rustc: env!("LOWBIT_RUSTC").into(),
        profile: env!("LOWBIT_PROFILE").into(),
    }
}

fn processor_and_memory() -> (Option<String>, u64) {
    let Ok(mut system) = System::new() else { return (None, 0) };
    system.refresh_memory();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    let brand = system.cpus().first().map(|cpu| cpu.brand().trim().to_string());
    (brand.filter(|brand| !brand.is_empty()), system.total_memory())
}

/// Commit of the sources that the program was built from, and whether they differ from it.
///
/// A commit alone does not make anyone build anew, so the build remembers a hash of its sources: while those on disk are the
/// same, it is they that are asked. A program that is older than its sources says what it was built from. The source folder
/// is asked, never the working directory: that may be the repository of something else.
fn commit() -> (String, Option<bool>) {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let built = || {
        let dirty = option_env!("LOWBIT_BUILT_DIRTY").map(|dirty| dirty == "true");
        (env!("LOWBIT_BUILT_COMMIT").to_string(), dirty)
    };
    let unchanged = source::hash(root).is_some_and(|hash| option_env!("LOWBIT_SOURCES") == Some(&hash));
    match source::commit(root).filter(|_| unchanged) {
        Some((commit, dirty)) => (commit, Some(dirty)),
        None => built(),
    }
}

fn gpu() -> (Option<String>, Option<String>) {
    let line = output("nvidia-smi", &["--query-gpu=name,driver_version", "--format=csv,noheader"]);
    match line.as_deref().and_then(|text| text.lines().next()?.split_once(", ")) {
        Some((name, driver)) => (Some(name.into()), Some(driver.into())),
        None => (None, None),
    }
}

/// Standard output of a command that succeeded, trimmed.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8(out.stdout).ok()?.trim().to_string())
}

/// What the processor has, and the limit to it where one is set.
fn features() -> String {
    let limit = std::env::var("LOWBIT_SIMD").ok().filter(|limit| !limit.is_empty());
    let limit = limit.map(|limit| format!("at most {limit}"));
    cpu_features().into_iter().map(String::from).chain(limit).collect::<Vec<_>>().join(" ")
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! look_for {
        ($($feature:tt)*) => {$(
            if std::arch::is_x86_feature_detected!($feature) {
                found.push($feature);
            }
        )*};
    }
    look_for!("avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512vnni" "avx512bf16");
    // AMX has no stable detection macro: leaf 7, sub-leaf 0, edx bits 22 (bf16), 24 (tile), 25 (int8).
    let edx = std::arch::x86_64::__cpuid_count(7, 0).edx;
    found.extend(
        [(22, "amx-bf16"), (24, "amx-tile"), (25, "amx-int8")]
            .iter()
            .filter(|(bit, _)| edx >> bit & 1 == 1)
            .map(|(_, name)| *name),
    );
    found
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_every_machine_knows_is_missing() {
        let here = Provenance::gather();
        assert!(!here.host.is_empty() && !here.os.is_empty() && !here.cpu_model.is_empty());
        assert!(here.memory_bytes > 1 << 26 && here.cpu_threads >= 1, "{here:?}");
        assert!(here.candle_version.starts_with(|c: char| c.is_ascii_digit()), "{}", here.candle_version);
        assert!(here.git_commit == "unknown" || here.git_commit.len() == 40, "{}", here.git_commit);
        assert_eq!(here, Provenance::gather());
        // The tests are built from what lies there.
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if let Some((commit, dirty)) = source::commit(root) {
            assert_eq!((here.git_commit, here.git_dirty), (commit, Some(dirty)));
        }
    }
}
