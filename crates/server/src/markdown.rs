//! Markdown of a model's answer to HTML that is safe to insert into a page.
//!
//! Answers are untrusted: a model repeats whatever it has read. Raw HTML is shown as text, pictures become links (a page
//! must not fetch from elsewhere), and the result passes a sanitiser that knows only the tags below.

mod blocks;

pub(crate) use blocks::BlockStream;

use std::collections::HashSet;

use pulldown_cmark::{CowStr, Event, LinkType, Options, Parser, Tag, TagEnd};

/// Tags an answer may use; anything else is shown as text or dropped.
const TAGS: [&str; 24] = [
    "p",
    "br",
    "hr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "strong",
    "em",
    "del",
    "a",
    "ul",
    "ol",
    "li",
    "blockquote",
    "pre",
    "code",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
];

/// Renders and sanitises; made once, used by all requests.
pub(crate) struct MarkdownRenderer {
    sanitiser: ammonia::Builder<'static>,
}

impl MarkdownRenderer {
    pub(crate) fn new() -> Self {
        let mut tags = HashSet::from(TAGS);
        tags.insert("td");
        let mut sanitiser = ammonia::Builder::new();
        sanitiser
            .tags(tags)
            .tag_attributes(
                [
                    ("a", HashSet::from(["href"])),
                    ("code", HashSet::from(["class"])),
                    ("ol", HashSet::from(["start"])),
                ]
                .into(),
            )
            .generic_attributes(HashSet::new())
            .url_schemes(HashSet::from(["http", "https", "mailto"]))
            .url_relative(ammonia::UrlRelative::Deny)
            .link_rel(Some("noopener noreferrer nofollow"))
            .set_tag_attribute_value("a", "target", "_blank")
            .attribute_filter(|element, attribute, value| match (element, attribute) {
                ("code", "class") if !is_language_class(value) => None,
                _ => Some(value.into()),
            });
        Self { sanitiser }
    }

    /// The HTML of one block or of a whole text.
    pub(crate) fn render(&self, markdown: &str) -> String {
        let mut options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        // Short rows are filled with empty cells: a wide header would make a page of a few lines.
        if markdown.lines().any(|line| line.matches('|').count() > MAX_COLUMNS) {
            options.remove(Options::ENABLE_TABLES);
        }
        let events = HarmlessEvents {
            parser: Parser::new_ext(markdown, options),
            open_links: Vec::new(),
            depth: 0,
        };
        let mut html = String::with_capacity(markdown.len() * 3 / 2);
        pulldown_cmark::html::push_html(&mut html, events);
        if html.len() > MAX_HTML_BYTES + MAX_GROWTH * markdown.len() {
            html.clear();
            pulldown_cmark::html::push_html(&mut html, [Event::Text(markdown.into())].into_iter());
        }
        self.sanitiser.clean(&html).to_string()
    }
}

/// True for `language-rust` and the like: the only class an answer may set.
fn is_language_class(value: &str) -> bool {
    value.strip_prefix("language-").is_some_and(|name| {
        name.len() <= 32 && name.chars().all(|c| c.is_ascii_alphanumeric() || "+#-_.".contains(c))
    })
}

/// Turns raw HTML into text and pictures into links.
struct HarmlessEvents<'a> {
    parser: Parser<'a>,
    /// For each open link or picture, whether it was written as a link: links do not nest in HTML.
    open_links: Vec<bool>,
    /// Open quotes, lists and items.
    depth: usize,
}

const MAX_DEPTH: usize = 24;
/// Columns of a table.
const MAX_COLUMNS: usize = 32;
/// HTML that a text may become: so much, and so many bytes for each of its own. More is shown as plain text.
const MAX_HTML_BYTES: usize = 64 << 10;
const MAX_GROWTH: usize = 16;

impl<'a> Iterator for HarmlessEvents<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        let event = self.parser.next()?;
        Some(match event {
            Event::Html(text) | Event::InlineHtml(text) => Event::Text(text),
            Event::Start(Tag::HtmlBlock) => Event::Start(Tag::Paragraph),
            Event::End(TagEnd::HtmlBlock) => Event::End(TagEnd::Paragraph),
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                let is_outermost = self.open_links.is_empty();
                self.open_links.push(is_outermost);
                if is_outermost { Event::Start(link(dest_url)) } else { empty_text() }
            }
            Event::End(TagEnd::Link | TagEnd::Image) => match self.open_links.pop() {
                Some(true) => Event::End(TagEnd::Link),
                _ => empty_text(),
            },
            Event::Start(tag @ (Tag::BlockQuote(_) | Tag::List(_) | Tag::Item)) => {
                self.depth += 1;
                if self.depth <= MAX_DEPTH { Event::Start(tag) } else { empty_text() }
            }
            Event::End(tag @ (TagEnd::BlockQuote(_) | TagEnd::List(_) | TagEnd::Item)) => {
                self.depth -= 1;
                if self.depth < MAX_DEPTH { Event::End(tag) } else { empty_text() }
            }
            other => other,
        })
    }
}

fn link(dest_url: CowStr<'_>) -> Tag<'_> {
    let (title, id) = (CowStr::Borrowed(""), CowStr::Borrowed(""));
    Tag::Link { link_type: LinkType::Inline, dest_url, title, id }
}

fn empty_text() -> Event<'static> {
    Event::Text(CowStr::Borrowed(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn html(markdown: &str) -> String {
        MarkdownRenderer::new().render(markdown)
    }

    #[test]
    fn ordinary_markdown_is_rendered() {
        let text =
            "# Titre\n\nUn *mot*, du `code`.\n\n1. a\n2. b\n\n| x | y |\n|--|--|\n| 1 | 2 |\n";
        let html = html(text);
        for part in
            ["<h1>Titre</h1>", "<em>mot</em>", "<code>code</code>", "<li>b</li>", "<td>2</td>"]
        {
            assert!(html.contains(part), "{part} in {html}");
        }
    }

    #[test]
    fn code_keeps_its_language_and_no_other_class() {
        assert!(html("```rust\nfn f() {}\n```").contains("<code class=\"language-rust\">"));
        assert!(!html("```a\"onmouseover=alert(1)\nx\n```").contains("class"));
    }

    #[test]
    fn raw_html_shows_as_text() {
        let html = html("before <b onclick=alert(1)>bold</b>\n\n<script>alert(1)</script>\n");
        assert!(!html.contains("<script") && !html.contains("<b"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{html}");
    }

    #[test]
    fn dangerous_links_lose_their_target() {
        for url in [
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            "data:text/html,<script>alert(1)</script>",
            "vbscript:x",
            "file:///etc/passwd",
            "//evil.example/x",
            "/v1/models",
        ] {
            let html = html(&format!("[text](<{url}>) and ![picture](<{url}>)"));
            assert!(!html.contains("href"), "{url}: {html}");
            assert!(html.contains("text") && html.contains("picture"), "{url}: {html}");
        }
    }

    #[test]
    fn ordinary_links_open_elsewhere_and_pictures_become_links() {
        let html = html("[a](https://example.org) ![b](https://example.org/b.png)");
        assert!(html.contains("href=\"https://example.org\""), "{html}");
        assert!(html.contains("rel=\"noopener noreferrer nofollow\""), "{html}");
        assert!(
            html.contains("href=\"https://example.org/b.png\"") && !html.contains("<img"),
            "{html}"
        );
    }

    #[test]
    fn a_picture_inside_a_link_leaves_one_link() {
        let html = html("[![alt](https://a.example/p.png)](https://b.example)");
        assert_eq!(html.matches("<a ").count(), 1, "{html}");
        assert!(html.contains("alt"), "{html}");
    }

    #[test]
    fn deep_nesting_is_cut_and_keeps_the_text() {
        let html = html(&format!("{} deep", "> ".repeat(5_000)));
        assert_eq!(html.matches("<blockquote>").count(), MAX_DEPTH);
        assert_eq!(html.matches("</blockquote>").count(), MAX_DEPTH);
        assert!(html.contains("deep"), "{html}");
    }

    #[test]
    fn a_table_does_not_grow_beyond_its_text() {
        let table = |n_columns: usize| {
            let header = "a|".repeat(n_columns);
            format!("{header}\n{}\n{}", "-|".repeat(n_columns), "x\n".repeat(2_000))
        };
        assert!(html(&table(3)).contains("<table>"));
        let wide = html(&table(200));
        assert!(!wide.contains("<table>") && wide.len() < 100_000, "{} bytes", wide.len());
        let long = table(30);
        assert!(html(&long).len() <= MAX_HTML_BYTES + MAX_GROWTH * long.len());
    }

    #[test]
    fn handlers_never_survive() {
        let hostile = "<img src=x onerror=alert(1)>\n\n<svg/onload=alert(1)>\n\n[x](https://a \"onmouseover=1\")\n\
                       \n<a href=\"javascript:alert(1)\">y</a> <style>*{}</style><iframe src=//x>";
        let html = html(hostile);
        for tag in ["<img", "<svg", "<style", "<iframe", "<a href=\"java"] {
            assert!(!html.contains(tag), "{tag} in {html}");
        }
    }
}
