//! Writes the forms of a report with made-up figures into a folder, to look at them:
//! `cargo run -p eval --example report_preview -- FOLDER`.

#[path = "../tests/report/made_up.rs"]
mod made_up;

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("expected a folder")?);
    let report = made_up::report();
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("report.html"), report.to_html())?;
    std::fs::write(folder.join("report.txt"), report.to_text())?;
    std::fs::write(folder.join("report.json"), report.to_json()?)?;
    std::fs::write(folder.join("loss.svg"), eval::loss_curve_svg(&report.curves))?;
    Ok(())
}
