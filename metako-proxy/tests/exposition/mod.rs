//! A strict reader of Prometheus' text format 0.0.4 and of OpenMetrics 1.0, as far as metako writes them.

use std::collections::{BTreeMap, BTreeSet};

use metako_proxy::metrics::Format;

/// A metric with all of its samples.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) samples: Vec<(Labels, f64)>,
}

pub(crate) type Labels = BTreeMap<String, String>;

/// The metrics of a text, by the names of their samples.
pub(crate) type Families = BTreeMap<String, Family>;

/// Reads a text, or says what is wrong with it: each metric has HELP, TYPE, then its samples, all in one place; names are
/// names, labels and samples are there once, values are numbers, and a counter is called one.
pub(crate) fn read(text: &str, format: Format) -> Result<Families, String> {
    let body = match format {
        Format::Prometheus => text,
        Format::OpenMetrics => text.strip_suffix("# EOF\n").ok_or("there is no `# EOF` at the end")?,
    };
    if !body.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let mut families = Families::new();
    let mut open: Option<(String, Family)> = None;
    let mut helped: Option<(String, String)> = None;
    for line in body.lines() {
        let wrong = |what: &str| format!("{what}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            close(&mut families, open.take(), format)?;
            let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
            if helped.replace((name.to_owned(), help.to_owned())).is_some() {
                return Err(wrong("a HELP before it has no TYPE"));
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
            let (_, help) =
                helped.take().filter(|(of, _)| of == name).ok_or_else(|| wrong("no HELP before it"))?;
            if !is_name(name) || !["counter", "gauge", "info"].contains(&kind) {
                return Err(wrong("no name or no type"));
            }
            open = Some((name.to_owned(), Family { kind: kind.to_owned(), help, samples: Vec::new() }));
        } else {
            let (name, labels, value) = sample(line).ok_or_else(|| wrong("no sample"))?;
            let (family, open) = open.as_mut().ok_or_else(|| wrong("a sample of nothing"))?;
            if name != sample_name(family, &open.kind, format) {
                return Err(wrong("a sample of something else"));
            }
            if open.samples.iter().any(|(known, _)| *known == labels) {
                return Err(wrong("a sample that was there before"));
            }
            if open.kind == "counter" && !(value.is_finite() && value >= 0.0) {
                return Err(wrong("no count"));
            }
            open.samples.push((labels, value));
        }
    }
    close(&mut families, open, format)?;
    match helped {
        None => Ok(families),
        Some((name, _)) => Err(format!("{name} has a HELP and no TYPE")),
    }
}

/// What the samples of a metric are called.
fn sample_name(family: &str, kind: &str, format: Format) -> String {
    match (format, kind) {
        (Format::OpenMetrics, "counter") => format!("{family}_total"),
        (Format::OpenMetrics, "info") => format!("{family}_info"),
        _ => family.to_owned(),
    }
}

fn close(families: &mut Families, family: Option<(String, Family)>, format: Format) -> Result<(), String> {
    let Some((name, family)) = family else { return Ok(()) };
    let name = sample_name(&name, &family.kind, format);
    if (family.kind == "counter") != name.ends_with("_total") {
        return Err(format!("{name} is a {}", family.kind));
    }
    if families.insert(name.clone(), family).is_some() {
        return Err(format!("{name} is there twice"));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}

/// `name{label="value",...} number`
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let (name, mut rest) = line.split_once('{')?;
    let mut labels = Labels::new();
    let mut names = BTreeSet::new();
    loop {
        let (label, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next()? {
                (end, '"') => break end,
                (_, '\\') => value.push(match letters.next()?.1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    _ => return None,
                }),
                (_, letter) => value.push(letter),
            }
        };
        if !is_name(label) || !names.insert(label) {
            return None;
        }
        labels.insert(label.to_owned(), value);
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => break,
        }
    }
    let number = rest.strip_prefix("} ")?;
    (is_name(name) && !number.contains(' ')).then_some(())?;
    Some((name, labels, number.parse().ok()?))
}
