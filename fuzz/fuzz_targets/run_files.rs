//! What a run leaves: metrics, report, data sheet.

#![no_main]

use std::path::Path;

use data::sheet::DataSheet;
use eval::Curve;
use eval::report::Report;
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_files(data, &["metrics.jsonl"], |folder| {
        let _ = Curve::read("run", &folder.join("metrics.jsonl"));
    });
    with_files(data, &["sheet.json"], |folder| {
        if let Ok(sheet) = DataSheet::read(&folder.join("sheet.json")) {
            let _ = sheet.to_markdown();
        }
    });
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(report) = Report::from_json(text, Path::new("report.json")) {
        let _ = (report.to_text(), report.to_html());
    }
});
