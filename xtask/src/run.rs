//! Running other programs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// What a program that ran left behind.
pub(crate) struct Ran {
    /// It exited with 0.
    pub(crate) success: bool,
    /// Everything it wrote on stdout; bytes that are not UTF-8 are replaced.
    pub(crate) stdout: String,
}

/// Runs a program, showing its stdout line by line while it is collected. Its stderr goes to the terminal.
pub(crate) fn echoed(command: &mut Command) -> Result<Ran> {
    let shown = format!("{command:?}");
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {shown}"))?;
    let pipe = child.stdout.take().context("the child has no stdout")?;
    let mut stdout = String::new();
    for line in BufReader::new(pipe).split(b'\n') {
        let line = line.with_context(|| format!("reading the output of {shown}"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        stdout.push_str(&line);
        stdout.push('\n');
    }
    std::io::stdout().flush()?;
    let success = child.wait()?.success();
    Ok(Ran { success, stdout })
}

/// Runs a program in silence and returns its stdout; a failure carries its stderr.
pub(crate) fn captured(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("starting {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program, showing everything it prints; an exit other than 0 is an error.
pub(crate) fn must_succeed(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("starting {shown}"))?;
    if !status.success() {
        bail!("{shown} failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_are_returned() {
        let ran = echoed(Command::new("sh").args(["-c", "echo one; echo two; exit 3"])).unwrap();
        assert_eq!(ran.stdout, "one\ntwo\n");
        assert!(!ran.success);
    }

    #[test]
    fn a_failure_carries_stderr() {
        let error = captured(Command::new("sh").args(["-c", "echo why >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = must_succeed(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
