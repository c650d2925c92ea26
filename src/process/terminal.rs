//! Raw pseudo-terminals, for programs that hold their output back unless a person seems to read it.
//!
//! A terminal in raw mode changes no byte, echoes nothing and raises no signal. The process does not get it as its
//! controlling terminal. So it differs from a pipe in three ways only: programs write each line at once, large output
//! takes more system calls, and the end is an error (`EIO`) in place of end-of-file.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

/// The size that programs see: wide enough that none of them breaks its lines.
const SIZE: Winsize = Winsize { ws_row: 24, ws_col: 10_000, ws_xpixel: 0, ws_ypixel: 0 };

/// A raw pseudo-terminal: the proxy's end, and the end of the process. Both are closed on exec.
///
/// # Errors
/// When there is no `/dev/ptmx`, as in an image without devices, or when none are left.
pub fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    // Otherwise it would become the controlling terminal of a proxy that is PID 1.
    let proxy = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&proxy)?;
    let process = peer(&proxy)?;
    let mut modes = tcgetattr(&process)?;
    modes.make_raw();
    tcsetattr(&process, OptionalActions::Now, &modes)?;
    tcsetwinsize(&process, SIZE)?;
    Ok((proxy, process))
}

/// The end of the process. By an `ioctl`, since `/dev/pts` may be missing; by name where there is no such call (gVisor).
fn peer(proxy: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    match ioctl_tiocgptpeer(proxy, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC) {
        Err(Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => {
            let name = ptsname(proxy, Vec::new())?;
            rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pipe::{read, unread};

    #[test]
    fn bytes_pass_unchanged_and_the_end_is_an_end() {
        let (proxy, process) = open().unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        rustix::io::write(&process, &bytes).unwrap();
        assert_eq!(unread(&proxy, true), 256);
        let mut received = Vec::with_capacity(1024);
        while received.len() < 256 {
            read(&proxy, &mut received).unwrap();
        }
        assert_eq!(received, bytes);
        drop(process);
        assert_eq!(read(&proxy, &mut received), Ok(0));
    }
}
