//! What hostile templates take. A test of its own, since the peak of memory is that of the process.

#![allow(clippy::unwrap_used, reason = "tests")]
#![cfg(target_os = "linux")]

use std::fs;
use testkit::golden::workspace_root;
use tokenizer::{ChatTemplate, Conversation, Ending, JinjaTemplate, Tokenizer};

/// More than any of them takes, and less than each would if it were not paid for before it writes.
const MAX_MIB: usize = 300;

fn peak_mib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[test]
fn no_template_takes_much_memory() {
    let folder = workspace_root().join("golden/tokenizer/model");
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let list = "{% set x = ['a' * 1000000] * 15 %}";
    let members: String = (0..70).map(|i| format!("a{i}=x, ")).collect();
    for source in [
        "{{ ('{0}' * 1000).format('a' * 1000000) }}".to_string(),
        "{{ ('%(a)s' * 1000) | format(a='a' * 1000000) }}".to_string(),
        "{{ ('a' * 63).join('a' * 16000000) }}".to_string(),
        "{{ ('\"' * 60000000) | escape }}".to_string(),
        "{{ ('\u{390}' * 25000000) | upper }}".to_string(),
        format!("{list}{{{{ ([0] * 70) | map('default', x, true) | tojson }}}}"),
        format!("{list}{{% set ns = namespace({members}z=1) %}}{{{{ ns }}}}"),
        format!("{list}{{% set ns = namespace({members}z=1) %}}{{{{ ns | tojson }}}}"),
        format!("{list}{{% call dict({members}z=1) %}}{{% endcall %}}"),
        "{{ (['\\u0001' * 1000] * 15000) | tojson }}".to_string(),
        "{% set s = 'é' * 20000000 %}{{ s[::-1] }}{{ s | list }}".to_string(),
    ] {
        let template = ChatTemplate::Jinja(JinjaTemplate::new(&source).unwrap().into());
        let conversation = Conversation { messages: Vec::new() };
        let start = source.chars().take(80).collect::<String>();
        let rendered = template.render(&tokenizer, &conversation, Ending::AwaitAnswer);
        let error = rendered.map(|rendered| rendered.text.len()).expect_err(&start).to_string();
        let is_bound = error.ends_with("out of fuel") || error.contains("16777216 bytes");
        assert!(is_bound, "{start}: {error}");
        assert!(peak_mib() < MAX_MIB, "{start}: {} MiB", peak_mib());
    }
}
