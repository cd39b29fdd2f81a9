//! The pattern language: rules in text files, compiled once into trees.
//!
//! A file holds rules: `:name`, then one alternative a line. Inside a line:
//!
//! | Form | Means |
//! |---|---|
//! | `[a\|b\|]` | one of the alternatives |
//! | `{rule}` | an alternative of a rule |
//! | `{X}` | the name, noun, text or number bound to the letter X |
//! | `{#X}`, `{@X}` | the number X in digits, in words |
//! | `{#2-30}`, `{@2-30}`, `{N:#2-30}` | a random number, bound to N in the last form |
//! | `{X?a\|b}` | by the gender of X (masculine, feminine, neuter), or by number (one, more) |
//! | `{X=a\|b\|c}` | by the number X, counted from 0 |
//! | `{P:person}`, `{P:man}`, `{P:woman}`, `{town}` | a new name, bound to P |
//! | `{P:someone}` | the same, with a family name as unbound persons have |
//! | `{the+ tool/cloth}`, `{X:a.d tool}`, `{his X}` | a noun phrase, see below |
//! | `{!...}` | bind without writing |
//!
//! A noun phrase has a determiner (`bare a the my your his this some`; with a final `s` plural), a
//! German case (`.a`, `.d`), `+` for a possible or `++` for a certain adjective, then classes or a
//! bound letter, then `@X` for the owner (`his`) or the person that a trade agrees with.

use std::collections::HashMap;

use super::lexicon::class_index;
use super::phrase::{Case, Count, Determiner};

/// The letter of a variable, from 0 for A.
pub(super) type Letter = usize;

#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Choice(Vec<Vec<Node>>),
    Rule(usize),
    Value(Letter),
    ByGender(Letter, Vec<Vec<Node>>),
    ByIndex(Letter, Vec<Vec<Node>>),
    Digits(Letter),
    Words(Letter),
    Range { low: i64, high: i64, spelled: bool, bind: Option<Letter>, is_silent: bool },
    Person { is_woman: Option<bool>, has_family: bool, bind: Option<Letter>, is_silent: bool },
    Town { bind: Option<Letter>, is_silent: bool },
    Noun(NounNode),
}

#[derive(Debug)]
pub(super) struct NounNode {
    pub(super) determiner: Determiner,
    pub(super) count: Count,
    pub(super) case: Case,
    /// Chance in 100 of an adjective.
    pub(super) adjective_chance: usize,
    pub(super) source: Source,
    pub(super) owner: Option<Letter>,
    pub(super) bind: Option<Letter>,
    pub(super) is_silent: bool,
}

#[derive(Debug)]
pub(super) enum Source {
    Classes(Vec<usize>),
    Bound(Letter),
}

/// A compiled set of rules.
#[derive(Debug, Default)]
pub(super) struct Grammar {
    pub(super) rules: Vec<Vec<Vec<Node>>>,
    pub(super) names: HashMap<String, usize>,
    /// Document plans: rules whose name starts with `doc_`, kept as words.
    pub(super) plans: HashMap<String, Vec<String>>,
}

impl Grammar {
    /// Compiles rule files. Panics on a mistake in them, with the line.
    pub(super) fn new(files: &[&str]) -> Self {
        let mut grammar = Self::default();
        let mut lines: Vec<(usize, &str)> = Vec::new();
        let mut plan = None;
        let mut rule = 0;
        for line in files.iter().flat_map(|f| f.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with("# ") {
                continue;
            }
            if let Some(name) = line.strip_prefix(':') {
                plan = name.starts_with("doc_").then(|| name.to_owned());
                if plan.is_none() {
                    rule = grammar.intern(name);
                }
            } else if let Some(name) = &plan {
                grammar.plans.entry(name.clone()).or_default().push(line.to_owned());
            } else {
                lines.push((rule, line));
            }
        }
        for (rule, line) in lines {
            let characters: Vec<char> = line.chars().collect();
            let (nodes, end) = grammar.sequence(&characters, 0, line);
            assert_eq!(end, characters.len(), "unbalanced bracket in `{line}`");
            grammar.rules[rule].push(nodes);
        }
        for (name, &rule) in &grammar.names {
            assert!(!grammar.rules[rule].is_empty(), "rule `{name}` has no line");
        }
        grammar
    }

    fn intern(&mut self, name: &str) -> usize {
        if let Some(&rule) = self.names.get(name) {
            return rule;
        }
        self.rules.push(Vec::new());
        self.names.insert(name.to_owned(), self.rules.len() - 1);
        self.rules.len() - 1
    }

    /// Parses up to an unmatched `|`, `]` or `}`, or the end.
    fn sequence(&mut self, c: &[char], mut at: usize, line: &str) -> (Vec<Node>, usize) {
        let mut nodes = Vec::new();
        let mut text = String::new();
        while at < c.len() {
            match c[at] {
                '|' | ']' | '}' => break,
                '[' | '{' => {
                    if !text.is_empty() {
                        nodes.push(Node::Text(std::mem::take(&mut text)));
                    }
                    let (node, end) = if c[at] == '[' {
                        self.choice(c, at, line)
                    } else {
                        self.braces(c, at, line)
                    };
                    nodes.push(node);
                    at = end;
                }
                other => {
                    text.push(other);
                    at += 1;
                }
            }
        }
        if !text.is_empty() {
            nodes.push(Node::Text(text));
        }
        (nodes, at)
    }

    fn alternatives(&mut self, c: &[char], mut at: usize, line: &str) -> (Vec<Vec<Node>>, usize) {
        let mut all = Vec::new();
        loop {
            let (nodes, end) = self.sequence(c, at, line);
            all.push(nodes);
            match c.get(end) {
                Some('|') => at = end + 1,
                Some(_) => return (all, end + 1),
                None => panic!("unclosed bracket in `{line}`"),
            }
        }
    }

    fn choice(&mut self, c: &[char], at: usize, line: &str) -> (Node, usize) {
        let (all, end) = self.alternatives(c, at + 1, line);
        assert!(c[end - 1] == ']', "bracket closed by a brace in `{line}`");
        (Node::Choice(all), end)
    }

    fn braces(&mut self, c: &[char], at: usize, line: &str) -> (Node, usize) {
        if c.get(at + 2) == Some(&'?') {
            let (forms, end) = self.alternatives(c, at + 3, line);
            return (Node::ByGender(letter(c[at + 1], line), forms), end);
        }
        if c.get(at + 2) == Some(&'=') {
            let (forms, end) = self.alternatives(c, at + 3, line);
            return (Node::ByIndex(letter(c[at + 1], line), forms), end);
        }
        let length = c[at..].iter().position(|&x| x == '}');
        let end = at + length.unwrap_or_else(|| panic!("unclosed brace in `{line}`"));
        let body: String = c[at + 1..end].iter().collect();
        (self.reference(&body, line), end + 1)
    }

    fn reference(&mut self, body: &str, line: &str) -> Node {
        let (is_silent, body) = body.strip_prefix('!').map_or((false, body), |rest| (true, rest));
        let (bind, body) = match body.split_once(':') {
            Some((name, rest)) => (Some(letter(name.chars().next().unwrap_or(' '), line)), rest),
            None => (None, body),
        };
        if body.contains(' ') {
            return noun_phrase(body, line, bind, is_silent);
        }
        let has_family = bind.is_none() || body == "someone";
        let person = |is_woman| Node::Person { is_woman, has_family, bind, is_silent };
        match body {
            "person" | "someone" => return person(None),
            "man" => return person(Some(false)),
            "woman" => return person(Some(true)),
            "town" => return Node::Town { bind, is_silent },
            _ => {}
        }
        if let Some(spelled) =
            body.strip_prefix('#').map(|_| false).or_else(|| body.strip_prefix('@').map(|_| true))
        {
            let rest = &body[1..];
            return match rest.split_once('-') {
                Some((low, high)) => Node::Range {
                    low: low.parse().unwrap_or_else(|_| panic!("bad range in `{line}`")),
                    high: high.parse().unwrap_or_else(|_| panic!("bad range in `{line}`")),
                    spelled,
                    bind,
                    is_silent,
                },
                None if spelled => Node::Words(letter(rest.chars().next().unwrap_or(' '), line)),
                None => Node::Digits(letter(rest.chars().next().unwrap_or(' '), line)),
            };
        }
        if body.len() == 1 && body.as_bytes()[0].is_ascii_uppercase() {
            return Node::Value(letter(body.chars().next().unwrap_or(' '), line));
        }
        Node::Rule(self.intern(body))
    }
}

fn letter(c: char, line: &str) -> Letter {
    assert!(c.is_ascii_uppercase(), "`{c}` is no variable, in `{line}`");
    c as usize - 'A' as usize
}

fn noun_phrase(body: &str, line: &str, bind: Option<Letter>, is_silent: bool) -> Node {
    let (ask, source) = body.split_once(' ').expect("a noun phrase has a space");
    let (source, owner) = match source.split_once('@') {
        Some((s, o)) => (s.trim(), Some(letter(o.chars().next().unwrap_or(' '), line))),
        None => (source.trim(), None),
    };
    let adjective_chance = match ask.len() - ask.trim_end_matches('+').len() {
        0 => 0,
        1 => 65,
        _ => 100,
    };
    let ask = ask.trim_end_matches('+');
    let (ask, case) = match ask.split_once('.') {
        Some((a, "a")) => (a, Case::Accusative),
        Some((a, "d")) => (a, Case::Dative),
        Some(_) => panic!("unknown case in `{line}`"),
        None => (ask, Case::Nominative),
    };
    let known = |word: &str| {
        Some(match word {
            "bare" => Determiner::None,
            "a" => Determiner::A,
            "the" => Determiner::The,
            "my" => Determiner::My,
            "your" => Determiner::Your,
            "his" => Determiner::OfHim,
            "this" => Determiner::This,
            "some" => Determiner::Some,
            _ => return None,
        })
    };
    let (determiner, count) = match known(ask) {
        Some(d) => (d, Count::Singular),
        None => {
            let stem = ask.strip_suffix('s').and_then(known);
            (
                stem.unwrap_or_else(|| panic!("unknown determiner `{ask}` in `{line}`")),
                Count::Plural,
            )
        }
    };
    let source = if source.len() == 1 {
        Source::Bound(letter(source.chars().next().unwrap_or(' '), line))
    } else {
        Source::Classes(
            source
                .split('/')
                .map(|s| {
                    class_index(s).unwrap_or_else(|| panic!("unknown class `{s}` in `{line}`"))
                })
                .collect(),
        )
    };
    Node::Noun(NounNode {
        determiner,
        count,
        case,
        adjective_chance,
        source,
        owner,
        bind,
        is_silent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_choices_and_phrases_parse() {
        let grammar =
            Grammar::new(&[":a\nx [b|{c}|] {N:#2-9} {X?e|f [g|h]} {the.d+ tool/cloth}\n:c\ny"]);
        assert_eq!(grammar.rules.len(), 2);
        assert!(
            matches!(grammar.rules[0][0].last(), Some(Node::Noun(n)) if n.case == Case::Dative)
        );
    }

    #[test]
    #[should_panic(expected = "rule `missing` has no line")]
    fn a_reference_to_no_rule_is_refused() {
        Grammar::new(&[":a\n{missing}"]);
    }
}
