//! Splits a growing Markdown text into top-level blocks, so that only the last one is ever rendered again.
//!
//! A block ends where a line says so: a blank line followed by something that does not belong to the same list, a
//! code fence, a heading. The decision looks at whole lines and at what was before them only, so the blocks of a text do
//! not depend on the pieces it came in. A block is rendered alone; link definitions do not reach across blocks.

use serde::Serialize;

use super::MarkdownRenderer;

/// New HTML for one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct BlockUpdate {
    /// Position from the top; a block is followed by blocks with higher numbers only.
    pub(crate) block: usize,
    /// Replaces what the block showed before.
    pub(crate) html: String,
}

/// What kind of block is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Paragraph, quote, table, anything that a blank line ends.
    Text,
    /// Code by indentation, which may hold blank lines.
    Indented,
    /// A list; its marker tells whether the next item is of the same one.
    List(char),
    /// A code fence at the left edge.
    Fenced,
    /// Complete with the line it is on.
    Heading,
}

/// An open code fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fence {
    marker: char,
    n_markers: usize,
}

/// The state of the splitter between two lines.
#[derive(Debug, Clone, Copy, Default)]
struct LineState {
    kind: Option<Kind>,
    fence: Option<Fence>,
    after_blank: bool,
}

/// A growing text. Memory and the cost of an update are bounded by the open block.
#[derive(Debug, Default)]
pub(crate) struct BlockStream {
    /// The text of the open block, with the part of a line that is not complete.
    open_text: String,
    /// Bytes of `open_text` whose lines have been looked at.
    n_scanned: usize,
    state: LineState,
    /// Number of the open block.
    block: usize,
    /// Finished blocks that have not been rendered yet: number and text.
    finished: Vec<(usize, String)>,
    /// Whether the open block has grown since it was last rendered.
    open_changed: bool,
}

impl BlockStream {
    /// Adds text; renders nothing.
    pub(crate) fn push(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.open_text.push_str(text);
        self.open_changed = true;
        while let Some(length) = self.open_text[self.n_scanned..].find('\n') {
            self.scan_line(self.n_scanned + length + 1);
        }
    }

    /// Ends the text: what remains of a line counts as a line, and no block is open any more.
    pub(crate) fn finish(&mut self) {
        if self.n_scanned < self.open_text.len() {
            self.scan_line(self.open_text.len());
        }
        self.close_block(self.open_text.len());
    }

    /// Renders what has changed: each finished block once, then the open block.
    pub(crate) fn take_updates(&mut self, renderer: &MarkdownRenderer) -> Vec<BlockUpdate> {
        let mut updates: Vec<BlockUpdate> = self
            .finished
            .drain(..)
            .map(|(block, text)| BlockUpdate { block, html: renderer.render(&text) })
            .collect();
        if self.open_changed && !self.open_text.trim().is_empty() {
            updates.push(BlockUpdate { block: self.block, html: renderer.render(&self.open_text) });
        }
        self.open_changed = false;
        updates
    }

    /// Looks at the line that ends at `line_end`.
    fn scan_line(&mut self, line_end: usize) {
        let line_start = self.n_scanned;
        let (state, is_boundary) = self.state.after(&self.open_text[line_start..line_end]);
        self.state = state;
        self.n_scanned = line_end;
        if is_boundary {
            self.close_block(line_start);
        }
    }

    /// Finishes the open block at byte `end`; the rest is the next block.
    fn close_block(&mut self, end: usize) {
        let rest = self.open_text.split_off(end);
        let text = std::mem::replace(&mut self.open_text, rest);
        self.n_scanned -= end;
        if !text.trim().is_empty() {
            self.finished.push((self.block, text));
            self.block += 1;
        }
    }
}

impl LineState {
    /// The state after a line, and whether a new block begins with it.
    fn after(self, line: &str) -> (Self, bool) {
        let line = line.trim_end();
        if let Some(fence) = self.fence {
            let (indent, text) = split_indent(line);
            let leaves_list = self.kind != Some(Kind::Fenced) && indent == 0 && !text.is_empty();
            if fence.is_closed_by(line) {
                return (Self { fence: None, ..self }, false);
            }
            if !leaves_list {
                return (self, false);
            }
        }
        if line.is_empty() {
            return (Self { after_blank: true, ..self }, false);
        }
        let begins_here = Self { after_blank: false, ..Self::beginning(line) };
        let Some(kind) = self.kind else { return (begins_here, false) };
        if kind.goes_on_with(line, self.after_blank) {
            let fence = if let Kind::List(_) = kind { fence_in_list(line) } else { None };
            return (Self { kind: Some(kind), fence, after_blank: false }, false);
        }
        (begins_here, true)
    }

    /// The state after the first line of a block.
    fn beginning(line: &str) -> Self {
        let (indent, text) = split_indent(line);
        let (kind, fence) = if indent >= 4 {
            (Kind::Indented, None)
        } else if let Some(fence) = Fence::opened_by(text) {
            (Kind::Fenced, Some(fence))
        } else if is_heading(text) {
            (Kind::Heading, None)
        } else if let Some(marker) = list_marker(text) {
            (Kind::List(marker.class), fence_in_list(line))
        } else {
            (Kind::Text, None)
        };
        Self { kind: Some(kind), fence, after_blank: false }
    }
}

impl Kind {
    /// Whether a line that is not blank and not inside a fence belongs to an open block of this kind.
    fn goes_on_with(self, line: &str, after_blank: bool) -> bool {
        let (indent, text) = split_indent(line);
        let interrupts = indent < 4 && (Fence::opened_by(text).is_some() || is_heading(text));
        match self {
            Self::Heading | Self::Fenced => false,
            Self::Indented => indent >= 4,
            Self::Text if after_blank || interrupts => false,
            Self::Text => !list_marker(text).is_some_and(|marker| marker.interrupts_text),
            Self::List(_) if indent >= 2 => true,
            Self::List(_) if interrupts => false,
            Self::List(class) if after_blank => {
                list_marker(text).is_some_and(|marker| marker.class == class)
            }
            Self::List(_) => true,
        }
    }
}

impl Fence {
    fn opened_by(text: &str) -> Option<Self> {
        let marker = text.chars().next().filter(|&c| c == '`' || c == '~')?;
        let rest = text.trim_start_matches(marker);
        let n_markers = text.len() - rest.len();
        let is_fence = n_markers >= 3 && !(marker == '`' && rest.contains('`'));
        is_fence.then_some(Self { marker, n_markers })
    }

    fn is_closed_by(self, line: &str) -> bool {
        let text = line.trim();
        text.len() >= self.n_markers && text.chars().all(|c| c == self.marker)
    }
}

/// The fence a line of a list opens, behind its indentation or behind the marker of an item.
fn fence_in_list(line: &str) -> Option<Fence> {
    let (_, text) = split_indent(line);
    let content = list_marker(text).map_or(text, |marker| text[marker.len..].trim_start());
    Fence::opened_by(content)
}

/// Columns of leading space, and the rest of the line.
fn split_indent(line: &str) -> (usize, &str) {
    let text = line.trim_start_matches([' ', '\t']);
    let indent = line[..line.len() - text.len()].chars();
    (indent.map(|c| if c == '\t' { 4 } else { 1 }).sum(), text)
}

fn is_heading(text: &str) -> bool {
    let rest = text.trim_start_matches('#');
    (1..=6).contains(&(text.len() - rest.len()))
        && (rest.is_empty() || rest.starts_with([' ', '\t']))
}

/// The marker at the start of a list item.
struct ListMarker {
    /// `-`, `*`, `+`, or for numbers the character behind them.
    class: char,
    /// Bytes of the marker.
    len: usize,
    /// Whether a list may begin here without a blank line before it.
    interrupts_text: bool,
}

fn list_marker(text: &str) -> Option<ListMarker> {
    let first = text.chars().next()?;
    let (class, len, number) = if matches!(first, '-' | '*' | '+') {
        (first, 1, None)
    } else {
        let n_digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let class = text[n_digits..].chars().next().filter(|c| matches!(c, '.' | ')'))?;
        if n_digits == 0 || n_digits > 9 {
            return None;
        }
        (class, n_digits + 1, Some(&text[..n_digits]))
    };
    let rest = &text[len..];
    if !rest.is_empty() && !rest.starts_with([' ', '\t']) {
        return None;
    }
    let interrupts_text = !rest.trim().is_empty() && number.is_none_or(|number| number == "1");
    Some(ListMarker { class, len, interrupts_text })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The HTML of each block, after feeding `pieces` and taking updates after each.
    fn streamed(pieces: &[&str]) -> Vec<String> {
        let renderer = MarkdownRenderer::new();
        let mut stream = BlockStream::default();
        let mut shown: Vec<String> = Vec::new();
        let mut show = |updates: Vec<BlockUpdate>| {
            for BlockUpdate { block, html } in updates {
                // A finished block never changes: only the last known block or a new one may be named.
                assert!(
                    block + 1 >= shown.len() && block <= shown.len(),
                    "{block} of {}",
                    shown.len()
                );
                shown.resize(block + 1, String::new());
                shown[block] = html;
            }
        };
        for piece in pieces {
            stream.push(piece);
            show(stream.take_updates(&renderer));
        }
        stream.finish();
        show(stream.take_updates(&renderer));
        shown
    }

    fn texts(markdown: &str) -> Vec<String> {
        let mut stream = BlockStream::default();
        stream.push(markdown);
        stream.finish();
        stream.finished.into_iter().map(|(_, text)| text).collect()
    }

    const SAMPLE: &str = "Bonjour, voici *trois* points :\n- un\n- deux\n\n  suite de deux\n\n- trois\n\n## Code\n\
        ```rust\nfn main() {\n\n    println!(\"# pas un titre\");\n}\n```\nEnsuite :\n\n1. a\n   ```\n   x\n\n   y\n   ```\n\
        2. b\n\n> cité\n> encore\n\n    code indenté\n\n    suite\n\n| a | b |\n|---|---|\n| 1 | é |\n\nTitre\n---\n\n[x]: /u\n\nfin [x]";

    #[test]
    fn any_cut_gives_the_blocks_of_the_whole() {
        let whole = streamed(&[SAMPLE]);
        assert!(whole.len() >= 10, "{whole:#?}");
        for (cut, _) in SAMPLE.char_indices() {
            let (left, right) = SAMPLE.split_at(cut);
            assert_eq!(streamed(&[left, right]), whole, "cut at byte {cut}");
        }
        let characters: Vec<String> = SAMPLE.chars().map(String::from).collect();
        let pieces: Vec<&str> = characters.iter().map(String::as_str).collect();
        assert_eq!(streamed(&pieces), whole);
    }

    #[test]
    fn blocks_rendered_alone_make_the_whole() {
        let renderer = MarkdownRenderer::new();
        let alone: Vec<String> = texts(SAMPLE).iter().map(|text| renderer.render(text)).collect();
        assert_eq!(streamed(&[SAMPLE]), alone);
        assert_eq!(texts(SAMPLE).concat(), SAMPLE);
    }

    /// Random texts from the pieces that matter to the splitter, cut at random places.
    #[test]
    fn any_text_cut_anywhere_gives_the_blocks_of_the_whole() {
        let parts = [
            "\n",
            "\n\n",
            "a",
            " ",
            "  ",
            "    ",
            "- ",
            "* ",
            "1. ",
            "2) ",
            "```",
            "~~~",
            "`",
            "# ",
            "---",
            "> ",
            "| a |",
            "é",
            "[x](y)",
            "<b>",
            "\t",
            "\r\n",
            "**",
            "text text",
            "\n```\n",
            "\n- ",
        ];
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for _ in 0..300 {
            let pieces: Vec<&str> = (0..30).map(|_| parts[random(parts.len())]).collect();
            let text = pieces.concat();
            let whole = streamed(&[&text]);
            assert_eq!(streamed(&pieces), whole, "{text:?}");
            let cuts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            let cut = cuts[random(cuts.len())];
            assert_eq!(streamed(&[&text[..cut], &text[cut..]]), whole, "{text:?} at {cut}");
        }
    }

    #[test]
    fn blank_lines_inside_code_and_lists_do_not_split() {
        assert_eq!(texts("```\na\n\nb\n```\n\nc").len(), 2);
        assert_eq!(texts("1. a\n\n2. b\n\n   more\n\nc").len(), 2);
        assert_eq!(texts("- a\n  ```\n  x\n\n  y\n  ```\n- b\n").len(), 1);
    }

    #[test]
    fn code_after_a_sentence_is_a_block_of_its_own() {
        assert_eq!(texts("Voici :\n```py\nx\n```\nFin").len(), 3);
        assert_eq!(texts("Liste :\n- a\n- b").len(), 2);
        assert_eq!(texts("En\n1914. Rien").len(), 1);
    }

    #[test]
    fn an_unclosed_fence_stays_one_block() {
        assert_eq!(texts("```rust\nfn f() {\n\n# not a heading\n- not a list\n").len(), 1);
    }

    #[test]
    fn spaces_alone_make_no_block() {
        assert!(texts(" \n\n  \n").is_empty());
        assert!(streamed(&["\n", " ", "\n"]).is_empty());
    }
}
