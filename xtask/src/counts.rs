//! Counting tests: the closing lines of the runners are read and summed.

use std::fmt;
use std::ops::AddAssign;

/// How many tests of a runner, or of all of them, went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// A part that is one test in itself, such as the format check.
    pub(crate) fn single(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed), skipped: 0 }
    }

    /// A part that could not run.
    pub(crate) fn one_skipped() -> Self {
        Self { skipped: 1, ..Self::default() }
    }

    /// Sums the lines `test result: ok. 3 passed; 0 failed; 0 ignored; ...` of `cargo test`.
    pub(crate) fn of_cargo_test(output: &str) -> Self {
        let mut counts = Self::default();
        for line in output.lines().filter(|line| line.starts_with("test result:")) {
            counts.passed += number_before(line, " passed");
            counts.failed += number_before(line, " failed");
            counts.skipped += number_before(line, " ignored");
        }
        counts
    }

    /// Reads the last line of the form `test_page: 3 passed, 0 failed` of the client and browser tests.
    pub(crate) fn of_summary_line(output: &str) -> Option<Self> {
        let line = output.lines().rev().find(|line| line.contains(" passed, "))?;
        Some(Self {
            passed: number_before(line, " passed"),
            failed: number_before(line, " failed"),
            skipped: number_before(line, " skipped"),
        })
    }

    /// These counts, with at least one failure when the runner itself did not exit with 0: it may have died before it
    /// could count.
    pub(crate) fn with_exit(mut self, success: bool) -> Self {
        if !success {
            self.failed = self.failed.max(1);
        }
        self
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(formatter, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// The number that stands just before `word`; 0 if there is none.
pub(crate) fn number_before(line: &str, word: &str) -> u64 {
    let Some(end) = line.find(word) else { return 0 };
    let digits = line[..end].rsplit(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_test_results_are_summed() {
        let output = "running 2 tests\ntest result: ok. 12 passed; 0 failed; 1 ignored; 0 measured\n\
                      test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured\n";
        assert_eq!(Counts::of_cargo_test(output), Counts { passed: 15, failed: 2, skipped: 1 });
    }

    #[test]
    fn the_last_summary_line_counts() {
        let output = "ok one\nx: 1 passed, 0 failed\nx: 7 passed, 1 failed\n";
        assert_eq!(
            Counts::of_summary_line(output),
            Some(Counts { passed: 7, failed: 1, skipped: 0 })
        );
        assert_eq!(Counts::of_summary_line("Traceback"), None);
    }

    #[test]
    fn a_runner_that_died_is_a_failure() {
        assert_eq!(Counts::default().with_exit(false).failed, 1);
        assert_eq!(Counts { failed: 4, ..Counts::default() }.with_exit(false).failed, 4);
        assert_eq!(Counts::single(true).with_exit(true).failed, 0);
    }

    #[test]
    fn skipped_is_printed_only_if_any() {
        assert_eq!(Counts { passed: 5, failed: 1, skipped: 0 }.to_string(), "5 passed, 1 failed");
        assert_eq!(
            Counts { passed: 5, failed: 1, skipped: 2 }.to_string(),
            "5 passed, 1 failed, 2 skipped"
        );
    }
}
