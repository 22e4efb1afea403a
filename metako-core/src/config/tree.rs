//! YAML text as a tree whose nodes know their place. The only module that knows the YAML parser.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::problem::Problem;

/// The longest text that is read, in bytes.
pub(super) const TEXT_MAX: usize = 1 << 20;
/// How deep sections and lists may lie in each other.
pub(super) const DEPTH_MAX: usize = 32;
/// How many values a tree may hold, those that aliases repeat included.
pub(super) const VALUES_MAX: usize = 50_000;

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl From<Marker> for Place {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

impl Place {
    /// A problem at this place.
    pub(super) fn problem(self, key: &str, message: impl Into<String>) -> Problem {
        Problem { line: self.line, column: self.column, key: key.to_owned(), message: message.into() }
    }
}

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Text, still without a type; `plain` is without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Tree>),
    Section(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) value: Tree,
}

impl Tree {
    /// Whether nothing was written, or `null`, `~`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "null" | "Null" | "NULL" | "~"))
    }

    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Section(entries) => entries,
            _ => &[],
        }
    }

    /// The values directly inside.
    fn children(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        match &self.value {
            Value::Scalar { .. } => Box::new(std::iter::empty()),
            Value::List(items) => Box::new(items.iter()),
            Value::Section(entries) => Box::new(entries.iter().map(|entry| &entry.value)),
        }
    }

    /// How many values this is, itself included, and how deep they lie in each other.
    fn extent(&self) -> Extent {
        self.children().map(Self::extent).fold(Extent { values: 1, depth: 0 }, |sum, child| Extent {
            values: sum.values + child.values,
            depth: sum.depth.max(child.depth + 1),
        })
    }
}

#[derive(Clone, Copy)]
struct Extent {
    values: usize,
    depth: usize,
}

/// Parses one document. Faults that leave a tree (repeated keys) are added to `problems`; `Err` is a fault after which
/// nothing more can be told.
pub(super) fn parse(text: &str, problems: &mut Vec<Problem>) -> Result<Tree, Problem> {
    let start = Place { line: 1, column: 1 };
    if text.len() > TEXT_MAX {
        return Err(fault(start, format!("the file is longer than {TEXT_MAX} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder {
        text,
        problems,
        open: Vec::new(),
        anchors: BTreeMap::new(),
        values: 0,
        document: None,
        documents: 0,
    };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| builder.unreadable(&error))?;
        builder.event(event, span)?;
    }
    Ok(builder.document.unwrap_or(Tree { place: start, value: Value::Section(Vec::new()) }))
}

fn fault(place: Place, message: impl Into<String>) -> Problem {
    place.problem("", message)
}

/// A section or list that has not ended yet.
struct Open {
    place: Place,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Tree>),
    Section { entries: Vec<Entry>, key: Option<(String, Place)> },
}

struct Builder<'a> {
    text: &'a str,
    problems: &'a mut Vec<Problem>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, (Tree, Extent)>,
    values: usize,
    document: Option<Tree>,
    documents: usize,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let place = Place::from(span.start);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(fault(place, "a second document begins here (`---`); expected one"));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                untagged(place, tag.is_some())?;
                let plain = style == ScalarStyle::Plain;
                self.count(place, 1)?;
                self.add(Tree { place, value: Value::Scalar { text: text.into_owned(), plain } }, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                untagged(place, tag.is_some())?;
                self.begin(place, anchor, Content::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                untagged(place, tag.is_some())?;
                self.begin(place, anchor, Content::Section { entries: Vec::new(), key: None })?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.end()?,
            Event::Alias(anchor) => {
                let Some(extent) = self.anchors.get(&anchor).map(|(_, extent)| *extent) else {
                    return Err(fault(place, "this alias (`*`) stands inside the value that it names"));
                };
                self.count(place, extent.values)?;
                if self.open.len() + extent.depth > DEPTH_MAX {
                    return Err(too_deep(place));
                }
                let tree = self.anchors[&anchor].0.clone();
                self.add(tree, 0)?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn begin(&mut self, place: Place, anchor: usize, content: Content) -> Result<(), Problem> {
        if let Some(Open { content: Content::Section { key: None, .. }, .. }) = self.open.last() {
            return Err(fault(place, "a section or list stands where a key was expected"));
        }
        if self.open.len() >= DEPTH_MAX {
            return Err(too_deep(place));
        }
        self.count(place, 1)?;
        self.open.push(Open { place, anchor, content });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Problem> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.content {
            Content::List(items) => Value::List(items),
            Content::Section { entries, .. } => Value::Section(self.merged(entries)),
        };
        self.add(Tree { place: open.place, value }, open.anchor)
    }

    fn count(&mut self, place: Place, values: usize) -> Result<(), Problem> {
        self.values = self.values.saturating_add(values);
        if self.values > VALUES_MAX {
            return Err(fault(place, format!("the file holds more than {VALUES_MAX} values")));
        }
        Ok(())
    }

    /// Adds a finished value to what encloses it.
    fn add(&mut self, tree: Tree, anchor: usize) -> Result<(), Problem> {
        if anchor > 0 {
            let extent = tree.extent();
            self.count(tree.place, extent.values)?;
            self.anchors.insert(anchor, (tree.clone(), extent));
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.document = Some(tree),
            Some(Content::List(items)) => items.push(tree),
            Some(Content::Section { entries, key }) => match key.take() {
                Some((key, key_place)) => entries.push(Entry { key, key_place, value: tree }),
                None => match tree.value {
                    Value::Scalar { text, .. } => *key = Some((text, tree.place)),
                    _ => return Err(fault(tree.place, "a section or list stands where a key was expected")),
                },
            },
        }
        Ok(())
    }

    /// The entries of a finished section: what `<<` brings in comes last and gives way to what is written out; of keys
    /// that are repeated the first counts, and the others are problems.
    fn merged(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut first: BTreeMap<String, Place> = BTreeMap::new();
        let mut own: Vec<Entry> = Vec::new();
        let mut brought: Vec<Entry> = Vec::new();
        for entry in entries {
            let again = first.get(&entry.key).copied();
            first.entry(entry.key.clone()).or_insert(entry.key_place);
            if let Some(Place { line, column }) = again {
                self.misplaced(
                    &entry,
                    format!("stands here a second time; the first is in line {line}, column {column}"),
                );
            } else if entry.key != "<<" {
                own.push(entry);
            } else if matches!(entry.value.value, Value::Scalar { .. }) {
                self.misplaced(
                    &entry,
                    "merges a section, as in `<<: *name`; found a single value".to_owned(),
                );
            } else {
                let section = entry.value.entries().iter();
                let sections = entry.value.children().flat_map(Tree::entries);
                let list = matches!(entry.value.value, Value::List(_));
                brought.extend(section.chain(sections.filter(|_| list)).cloned());
            }
        }
        let mut seen: BTreeSet<String> = first.into_keys().collect();
        own.extend(brought.into_iter().filter(|entry| seen.insert(entry.key.clone())));
        own
    }

    /// A problem with a key of the section that just ended.
    fn misplaced(&mut self, entry: &Entry, message: String) {
        let mut path = String::new();
        for open in &self.open {
            match &open.content {
                Content::List(items) => path = item_path(&path, items.len()),
                Content::Section { key: Some((key, _)), .. } => path = key_path(&path, key),
                Content::Section { key: None, .. } => {}
            }
        }
        self.problems.push(entry.key_place.problem(&key_path(&path, &entry.key), message));
    }

    /// A fault of the syntax, in words for people.
    fn unreadable(&self, error: &ScanError) -> Problem {
        let place = Place::from(*error.marker());
        // The scanner may stop at the end of the line before the tab.
        let tab = [place.line, place.line + 1].into_iter().find_map(|line| self.tab_indents(line));
        if let Some(place) = tab {
            return fault(place, "a tab is used for indentation, which YAML does not allow; expected spaces");
        }
        if let Some(message) = self.cut_off(error) {
            return fault(place, message);
        }
        let message = match error.info() {
            "mapping values are not allowed in this context" => {
                "a `:` cannot stand here; expected one `key: value` a line, evenly indented, and quotes around text \
                 that holds `: `"
            }
            "while parsing a block mapping, did not find expected key" => {
                "expected a key here, indented like the keys above it"
            }
            "while parsing a flow mapping, did not find expected ',' or '}'" => "expected `,` or `}` here",
            "while parsing a flow sequence, expected ',' or ']'" => "expected `,` or `]` here",
            "while parsing a block collection, did not find expected '-' indicator" => {
                "expected `-` here, indented like the items above it"
            }
            "simple key expect ':'" | "simple key expected" => "expected `:` and a value after the key",
            "while parsing node, found unknown anchor" => {
                "this alias (`*`) names nothing that was marked (`&`) before"
            }
            "block sequence entries are not allowed in this context" => {
                "a list item (`-`) cannot stand here; expected it on a line of its own"
            }
            "while parsing a quoted scalar, found unknown escape character" => {
                "unknown escape after `\\` in double quotes; single quotes take text as it is"
            }
            other => return fault(place, format!("not valid YAML: {other}")),
        };
        fault(place, message)
    }

    /// The first tab in the indentation of a line.
    fn tab_indents(&self, line: usize) -> Option<Place> {
        let text = self.text.lines().nth(line.checked_sub(1)?)?;
        let mut indentation = text.chars().take_while(|c| matches!(c, ' ' | '\t'));
        indentation.position(|c| c == '\t').map(|index| Place { line, column: index + 1 })
    }

    /// What is still open, if the text ended before it.
    fn cut_off(&self, error: &ScanError) -> Option<String> {
        let rest = self.text.chars().skip(error.marker().index());
        let at_end = rest.clone().all(char::is_whitespace);
        if error.info().contains("quoted scalar, found unexpected end") {
            return Some("the file ends inside quotes; it may be cut off".to_owned());
        }
        if !at_end {
            return None;
        }
        let open = self.open.iter().rev().find_map(|open| {
            let line = self.text.lines().nth(open.place.line.checked_sub(1)?)?;
            let bracket = line.chars().nth(open.place.column - 1)?;
            let close = match bracket {
                '{' => '}',
                '[' => ']',
                _ => return None,
            };
            Some((bracket, close, open.place))
        })?;
        let (bracket, close, Place { line, column }) = open;
        Some(format!(
            "the file ends inside the `{bracket}` of line {line}, column {column}; expected `{close}`; it may be cut off"
        ))
    }
}

fn too_deep(place: Place) -> Problem {
    fault(place, format!("nested deeper than {DEPTH_MAX} levels"))
}

/// The path of a key inside the section at `path`. Where the space after a colon was forgotten the value is part of the
/// key; it may be a secret, and is left out.
pub(super) fn key_path(path: &str, key: &str) -> String {
    let key = key.split_once(':').map_or(key, |(key, _)| key);
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The path of an item of the list at `path`.
pub(super) fn item_path(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

fn untagged(place: Place, tagged: bool) -> Result<(), Problem> {
    if tagged { Err(fault(place, "YAML tags (`!`) are not used here")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<(Tree, Vec<String>), String> {
        let mut problems = Vec::new();
        match parse(text, &mut problems) {
            Ok(tree) => Ok((tree, problems.iter().map(ToString::to_string).collect())),
            Err(problem) => Err(problem.to_string()),
        }
    }

    fn keys(tree: &Tree) -> Vec<&str> {
        tree.entries().iter().map(|entry| entry.key.as_str()).collect()
    }

    #[test]
    fn places_point_at_keys_and_values() {
        let (tree, problems) = parsed("a: 1\nb:\n  - x\n  - { c: 'y' }\n").unwrap();
        assert!(problems.is_empty());
        let b = &tree.entries()[1];
        assert_eq!(b.key_place, Place { line: 2, column: 1 });
        let Value::List(items) = &b.value.value else { panic!("{b:?}") };
        assert_eq!(items[0].place, Place { line: 3, column: 5 });
        let c = &items[1].entries()[0];
        assert_eq!((c.key_place.column, c.value.place.column), (7, 10));
        assert_eq!(c.value.value, Value::Scalar { text: "y".to_owned(), plain: false });
    }

    #[test]
    fn an_empty_file_is_an_empty_section() {
        for text in ["", "# nothing\n", "---\n"] {
            let (tree, _) = parsed(text).unwrap();
            assert!(keys(&tree).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn merged_sections_give_way_to_what_is_written() {
        let text = "base: &base { a: 1, b: 2 }\nmore: { <<: *base, b: 3 }\nlist: { <<: [*base, { c: 4 }] }\n";
        let (tree, problems) = parsed(text).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(keys(&tree.entries()[1].value), ["b", "a"]);
        assert_eq!(keys(&tree.entries()[2].value), ["a", "b", "c"]);
    }

    #[test]
    fn repeated_keys_are_named_with_their_path() {
        let (_, problems) = parsed("nodes:\n  - { a: 1 }\n  - { a: 1, a: 2 }\n").unwrap();
        assert_eq!(
            problems,
            ["3:13: nodes[1].a: stands here a second time; the first is in line 3, column 7"]
        );
    }

    #[test]
    fn bombs_of_aliases_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let previous = format!("*a{}", level - 1);
            text.extend([format!("a{level}: &a{level} ["), vec![previous; 10].join(", "), "]\n".to_owned()]);
        }
        assert!(parsed(&text).unwrap_err().contains("more than 50000 values"));
    }

    #[test]
    fn depth_is_bounded_through_aliases_too() {
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        assert!(parsed(&deep).unwrap_err().contains("nested deeper"));
        let nest = |inner: &str| format!("{}{inner}{}", "[".repeat(20), "]".repeat(20));
        let text = format!("a: &a {}\nb: {}\n", nest("x"), nest("*a"));
        assert!(parsed(&text).unwrap_err().contains("nested deeper"));
    }

    #[test]
    fn a_value_that_holds_itself_is_refused() {
        assert!(parsed("a: &a [*a]\n").unwrap_err().contains("stands inside the value"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC*") {
            let _ = parsed(&text);
        }

        #[test]
        fn text_that_looks_like_yaml_is_answered(text in "[a-c0-1 \\n\\t:,&*!<\\[\\]{}'\"#|>%?-]{0,80}") {
            let _ = parsed(&text);
        }
    }
}
