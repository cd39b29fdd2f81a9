//! What the user sees while a model trains or arrives: a bar on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use client::Downloaded;
use eval::figures::{bytes, duration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use train::Progress;

/// Plain lines of a whole run, beside those with a validation.
const N_LINES: u64 = 20;

/// The progress of a training run, on stderr.
#[derive(Debug)]
pub(crate) struct TrainingBar {
    /// On a terminal.
    bar: Option<ProgressBar>,
    started: Instant,
    first_step: u64,
    bits_per_byte: Option<f64>,
}

impl TrainingBar {
    /// Progress from `step` on, of `n_steps`.
    pub(crate) fn new(step: u64, n_steps: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(n_steps), target).with_position(step);
            // The template is a constant that the library accepts.
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, started: Instant::now(), first_step: step, bits_per_byte: None }
    }

    /// Shows a step.
    pub(crate) fn observe(&mut self, progress: &Progress) {
        let is_validated = progress.validation_bits_per_byte.is_some();
        self.bits_per_byte = progress.validation_bits_per_byte.or(self.bits_per_byte);
        let Progress { step, n_steps, .. } = *progress;
        let message = self.message(progress);
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(message);
            return;
        }
        let is_due = step.is_multiple_of((n_steps / N_LINES).max(1)) || step == n_steps;
        if is_due || is_validated || step == self.first_step + 1 {
            // A closed stderr harms no training.
            let _ = writeln!(io::stderr(), "step {step}/{n_steps}  {message}");
        }
    }

    fn message(&self, progress: &Progress) -> String {
        let n_done = progress.step.saturating_sub(self.first_step).max(1);
        let n_left = progress.n_steps.saturating_sub(progress.step);
        let seconds_per_step = self.started.elapsed().as_secs_f64() / n_done as f64;
        let validation = self
            .bits_per_byte
            .map_or_else(String::new, |bits| format!("  validation {bits:.3} bits/byte"));
        format!(
            "loss {:.3}  {:.0} tokens/s  {:.0} GFLOP/s  {} left{validation}",
            progress.loss,
            progress.tokens_per_s,
            progress.flops_per_s / 1e9,
            duration(seconds_per_step * n_left as f64),
        )
    }

    /// Leaves the last state on the screen, and the cursor below it.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
            // A closed stderr harms no training.
            let _ = writeln!(io::stderr());
        }
    }
}

/// The progress of a download, on stderr.
#[derive(Debug)]
pub(crate) struct DownloadBar {
    /// On a terminal.
    bar: Option<ProgressBar>,
    /// When bytes began to come over the network.
    started: Instant,
    total: u64,
    n_lines: u64,
}

impl DownloadBar {
    /// Progress of `total` bytes.
    pub(crate) fn new(total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(total), target);
            let template = "{wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {msg}";
            // The template is a constant that the library accepts.
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, started: Instant::now(), total, n_lines: 0 }
    }

    /// Shows how many bytes are there, and the file that is arriving. What an earlier try left is summed up at the speed of the
    /// disk, which says nothing of the network: the time counts from there.
    pub(crate) fn observe(&mut self, so_far: Downloaded, file: &str) {
        let is_fetching = so_far.n_fetched > 0;
        if !is_fetching {
            self.started = Instant::now();
        }
        if let Some(bar) = &self.bar {
            bar.set_position(so_far.n_bytes());
            bar.set_message(file.to_owned());
            if !is_fetching {
                bar.reset_eta();
            }
        } else if let Some(line) = self.line(so_far, file) {
            // A closed stderr harms no download.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// The next plain line, when it is due: a download has as many as a training run.
    fn line(&mut self, so_far: Downloaded, file: &str) -> Option<String> {
        let position = so_far.n_bytes();
        let n_due =
            (u128::from(position) * u128::from(N_LINES) / u128::from(self.total.max(1))) as u64;
        if n_due <= self.n_lines {
            return None;
        }
        self.n_lines = n_due;
        let speed = so_far.n_fetched as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let pace = match so_far.n_fetched {
            0 => "of an earlier try".to_owned(),
            _ => format!("{}/s", bytes(speed as u64)),
        };
        Some(format!("{} of {}  {pace}  {file}", bytes(position), bytes(self.total)))
    }

    /// Leaves the last state on the screen, and the cursor below it.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
            // A closed stderr harms no download.
            let _ = writeln!(io::stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The bytes of an earlier try, and the time that summing them up took, made a speed that no network had.
    #[test]
    fn only_bytes_that_come_over_the_network_have_a_speed() {
        let started = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let mut bar = DownloadBar { bar: None, started, total: 100 << 20, n_lines: 0 };
        let kept = Downloaded { n_kept: 50 << 20, n_fetched: 0 };
        assert!(bar.line(kept, "a").unwrap().ends_with("  of an earlier try  a"));
        bar.observe(kept, "a");
        assert!(bar.started > started, "the time counts from the end of the sum");
        bar.started = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let line = bar.line(Downloaded { n_fetched: 20 << 20, ..kept }, "a").unwrap();
        assert_eq!(line, "70.0 MiB of 100.0 MiB  2.0 MiB/s  a");
        assert_eq!(bar.line(Downloaded { n_fetched: 21 << 20, ..kept }, "a"), None);
    }
}
