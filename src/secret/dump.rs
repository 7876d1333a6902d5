use rustix::io;
#[cfg(target_os = "linux")]
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::process::{Resource, Rlimit, setrlimit};
use tracing::warn;

/// From now on the system writes no core dump of this process: one would hold every secret. Where it does not obey, a warning
/// says so.
pub fn forbid_core_dumps() {
    if let Err(error) = forbid() {
        warn!("a crash may leave a core dump, which holds secrets: {error}");
    }
}

fn forbid() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // The limit does not hold where dumps are piped to a program, as to systemd-coredump. This also keeps processes of the same
    // user from reading the memory; root may. What the process reads of itself below /proc goes on.
    #[cfg(target_os = "linux")]
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
