//! The ready file: the bound addresses, for scripts that start the gateway on port 0 and wait for it.

use std::io;
use std::path::Path;

use serde_json::json;

use super::Addresses;

/// Removes what an earlier run left: it tells ports of a process that is gone.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes it whole or not at all: a reader that waits for the name never sees half of it.
pub(super) fn write(path: &Path, addresses: &Addresses) -> io::Result<()> {
    let Addresses { grpc, admin, events, sandbox } = addresses;
    let json = json!({ "grpc": grpc, "admin": admin, "events": events, "sandbox": sandbox });
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".tmp");
    std::fs::write(&unfinished, format!("{json}\n"))?;
    std::fs::rename(&unfinished, path)
}
