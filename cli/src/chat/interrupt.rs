//! Ctrl-C: it stops an answer, and where there is none, the program.

use std::{
    io, process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::Result;
use lfm2vl::CancelHandle;
use tokio::runtime;
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(windows)]
use tokio::signal::windows::{CtrlC, ctrl_c};

/// What is to be stopped. (While a line is edited, Ctrl-C is a key like any other.)
#[derive(Clone, Default)]
pub(super) struct Interrupt(Arc<Mutex<Option<CancelHandle>>>);

impl Interrupt {
    /// Listens from now on.
    pub(super) fn listen(&self) -> Result<()> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        // At once, so that no signal comes before.
        let mut signals = {
            let _context = runtime.enter();
            interrupts()?
        };
        let interrupt = self.clone();
        let terminal = Terminal::now();
        thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            runtime.block_on(async {
                while signals.recv().await.is_some() {
                    match &*interrupt.lock() {
                        Some(answer) => answer.cancel(),
                        None => {
                            terminal.restore();
                            process::exit(130);
                        }
                    }
                }
            });
        })?;
        Ok(())
    }

    /// Lets Ctrl-C stop this answer, as long as it is made.
    pub(super) fn stops(&self, answer: CancelHandle) -> Guard<'_> {
        *self.lock() = Some(answer);
        Guard(self)
    }

    fn lock(&self) -> MutexGuard<'_, Option<CancelHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until this is dropped, there is an answer to stop.
pub(super) struct Guard<'i>(&'i Interrupt);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// How the terminal is when no line is edited.
struct Terminal {
    #[cfg(unix)]
    attributes: Option<rustix::termios::Termios>,
}

impl Terminal {
    fn now() -> Self {
        Terminal {
            #[cfg(unix)]
            attributes: rustix::termios::tcgetattr(io::stdin()).ok(),
        }
    }

    /// For a signal that comes while a line is edited.
    fn restore(&self) {
        #[cfg(unix)]
        if let Some(attributes) = &self.attributes {
            use rustix::termios::{OptionalActions, tcsetattr};
            // The program ends, whether it works or not.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, attributes);
        }
    }
}

#[cfg(unix)]
fn interrupts() -> io::Result<Signal> {
    signal(SignalKind::interrupt())
}

#[cfg(windows)]
fn interrupts() -> io::Result<CtrlC> {
    ctrl_c()
}
