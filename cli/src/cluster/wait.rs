//! Waiting for a cluster to come round, and saying what is awaited.
//!
//! Changes nothing.

use std::time::{Duration, Instant};

use clap::Args;

use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// Between two questions to the API server: a person does not notice it, and neither does the server.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// How long to be patient.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Seconds to wait until everything is done. Images that have to be pulled take the longest.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
}

/// Waits for one thing after another, all of them within one time.
pub(crate) struct Wait<'a> {
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    deadline: Instant,
}

impl<'a> Wait<'a> {
    /// From now on.
    pub(crate) fn new(patience: Patience, interrupt: &'a Interrupt, progress: &'a Progress) -> Self {
        Self { interrupt, progress, deadline: Instant::now() + Duration::from_secs(patience.timeout) }
    }

    /// Until `look` finds nothing that is still awaited. Fails with what it found last.
    pub(crate) fn until(&self, what: &str, mut look: impl FnMut() -> Vec<String>) -> anyhow::Result<()> {
        self.until_or(what, || Ok(look()))
    }

    /// The same, unless `look` finds that waiting is of no use.
    pub(crate) fn until_or(
        &self,
        what: &str,
        mut look: impl FnMut() -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<()> {
        let mut shown = String::new();
        loop {
            let awaited = look().inspect_err(|_| self.progress.rest())?;
            let Some(first) = awaited.first() else { return Ok(()) };
            if *first != shown {
                shown.clone_from(first);
                self.progress.doing(&format!("{what}: {}", first.replace(char::is_control, " ")));
            }
            if Instant::now() >= self.deadline {
                self.progress.rest();
                anyhow::bail!("waited for {what} and gave up:\n  {}", awaited.join("\n  "));
            }
            self.interrupt.pause(ASK_EVERY)?;
        }
    }
}
