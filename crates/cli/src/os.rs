//! What only the operating system can do: tell that the user wants the program to stop.
#![expect(unsafe_code, reason = "signal handlers have no safe interface in the standard library")]

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};

/// The first signal that arrived since the handlers were set; 0 when none. A handler can reach nothing but statics.
static RECEIVED: AtomicI32 = AtomicI32::new(0);
/// Where the handler writes a byte to wake a waiting thread; -1 when nobody takes signals.
static WAKE_FD: AtomicI32 = AtomicI32::new(-1);

/// A request to stop: SIGINT or SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopSignal {
    /// SIGINT, usually Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl StopSignal {
    fn number(self) -> libc::c_int {
        match self {
            Self::Interrupt => libc::SIGINT,
            Self::Terminate => libc::SIGTERM,
        }
    }

    /// The exit code of a program that ended on this signal in good order.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }
}

/// Takes signals while it lives: the first one is a request, the second one ends the program at once. Dropped, it gives
/// them back to the system's defaults.
#[derive(Debug)]
pub(crate) struct StopSignals {
    taken: &'static [StopSignal],
    reader: PipeReader,
    _writer: PipeWriter,
}

impl StopSignals {
    /// Takes the signals given.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn take(taken: &'static [StopSignal]) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        RECEIVED.store(0, Ordering::SeqCst);
        WAKE_FD.store(writer.as_raw_fd(), Ordering::SeqCst);
        let signals = Self { taken, reader, _writer: writer };
        for signal in taken {
            set_handler(signal.number(), on_signal as *const () as libc::sighandler_t)?;
        }
        Ok(signals)
    }

    /// Takes both signals.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn take_all() -> io::Result<Self> {
        Self::take(&[StopSignal::Interrupt, StopSignal::Terminate])
    }

    /// The request to stop, if there was one.
    #[expect(clippy::unused_self, reason = "only who takes the signals may ask for them")]
    pub(crate) fn requested(&self) -> Option<StopSignal> {
        match RECEIVED.load(Ordering::SeqCst) {
            0 => None,
            libc::SIGTERM => Some(StopSignal::Terminate),
            _ => Some(StopSignal::Interrupt),
        }
    }

    /// Sleeps until there is a request to stop.
    ///
    /// # Errors
    /// When the system refuses to wait.
    pub(crate) fn wait(&mut self) -> io::Result<StopSignal> {
        loop {
            if let Some(signal) = self.requested() {
                return Ok(signal);
            }
            self.reader.read_exact(&mut [0])?;
        }
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        for signal in self.taken {
            // The default of a signal that exists can be set.
            let _ = set_handler(signal.number(), libc::SIG_DFL);
        }
        WAKE_FD.store(-1, Ordering::SeqCst);
    }
}

/// Runs on whatever thread the signal interrupts: atomics, `write` and `_exit` only, which POSIX allows there.
extern "C" fn on_signal(number: libc::c_int) {
    if RECEIVED.swap(number, Ordering::SeqCst) != 0 {
        // SAFETY: `_exit` may be called in a handler and touches no memory of ours.
        unsafe { libc::_exit(128 + number) };
    }
    let byte = 1_u8;
    // SAFETY: one byte is read from a live variable. The descriptor is that of a pipe or -1, which is refused; a result
    // of either kind needs no answer, for `RECEIVED` is set.
    unsafe { libc::write(WAKE_FD.load(Ordering::SeqCst), (&raw const byte).cast(), 1) };
}

/// Lets a write beyond the file-size limit (`ulimit -f`) fail with an error, as a full disk does, instead of killing the
/// program in the middle of a file.
pub(crate) fn ignore_file_size_signal() {
    // A system that refuses this only keeps its default.
    let _ = set_handler(libc::SIGXFSZ, libc::SIG_IGN);
}

fn set_handler(number: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: all zeros are a valid `sigaction`: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // Interrupted reads and writes go on by themselves; who waits is woken through the pipe.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is a complete structure whose handler is one of the system's constants or `on_signal`, which does
    // only what a handler may do; no old action is asked for.
    if unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_is_a_request_and_wakes_the_waiter() {
        let mut signals = StopSignals::take(&[StopSignal::Interrupt]).unwrap();
        assert_eq!(signals.requested(), None);
        // SAFETY: raising a signal whose handler is set above.
        unsafe { libc::raise(libc::SIGINT) };
        assert_eq!(signals.wait().unwrap(), StopSignal::Interrupt);
        assert_eq!(signals.requested(), Some(StopSignal::Interrupt));
        drop(signals);
        let again = StopSignals::take(&[StopSignal::Interrupt]).unwrap();
        assert_eq!(again.requested(), None, "a new taker starts afresh");
    }
}
