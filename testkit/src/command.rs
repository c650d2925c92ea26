//! The command that starts a proxy.

use std::process::Command;

/// Removes every setting of a proxy from the environment of a command, so that the proxy it starts has only the
/// settings it is given.
pub fn forget_proxy_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["PIPELOOP_", "OW_", "__OW_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
}
