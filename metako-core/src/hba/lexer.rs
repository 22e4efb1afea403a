//! Lines, fields and words, as PostgreSQL's hba.c takes them apart.

/// A word, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    /// It begins with a quote: no word of it is special.
    pub(super) quoted: bool,
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Word {
    /// Whether it is this special word.
    pub(super) fn is(&self, special: &str) -> bool {
        !self.quoted && self.text == special
    }

    /// What follows a special first character.
    pub(super) fn after(&self, mark: char) -> Option<&str> {
        self.text.strip_prefix(mark).filter(|rest| !self.quoted && !rest.is_empty())
    }
}

/// Words that commas join.
pub(super) type Field = Vec<Word>;

#[derive(Debug, Clone, Copy)]
struct Char {
    letter: char,
    line: usize,
    column: usize,
}

/// The fields of each line that has any. A line that ends with a backslash goes on in the next one.
pub(super) fn lines(text: &str) -> Vec<Vec<Field>> {
    let mut found = Vec::new();
    let mut logical = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let chars = line.chars().zip(1..).map(|(letter, column)| Char { letter, line: index + 1, column });
        logical.extend(chars);
        if logical.last().is_some_and(|last: &Char| last.letter == '\\') && line.ends_with('\\') {
            logical.pop();
            continue;
        }
        found.push(fields(&logical));
        logical.clear();
    }
    found.push(fields(&logical));
    found.retain(|fields: &Vec<Field>| !fields.is_empty());
    found
}

fn is_blank(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\r')
}

fn fields(line: &[Char]) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut field = Field::new();
    let mut rest = line;
    while let Some((word, comma, after)) = word(rest) {
        rest = after;
        field.push(word);
        if !comma {
            fields.push(std::mem::take(&mut field));
        }
    }
    if !field.is_empty() {
        fields.push(field);
    }
    fields
}

/// The next word, whether a comma ends it, and what follows.
fn word(line: &[Char]) -> Option<(Word, bool, &[Char])> {
    let begin = line.iter().position(|at| !is_blank(at.letter) && at.letter != ',')?;
    let line = &line[begin..];
    let first = line.first()?;
    let (mut text, mut quoted, mut saw_quote) = (String::new(), false, false);
    let (mut in_quote, mut was_quote, mut comma) = (false, false, false);
    let mut rest: &[Char] = &[];
    for (index, at) in line.iter().enumerate() {
        let char = at.letter;
        if is_blank(char) && !in_quote {
            rest = &line[index..];
            break;
        }
        if char == '#' && !in_quote {
            break;
        }
        if char == ',' && !in_quote {
            comma = true;
            rest = &line[index + 1..];
            break;
        }
        if char != '"' || was_quote {
            text.push(char);
        }
        // Two quotes inside quotes are one that is meant.
        was_quote = in_quote && char == '"' && !was_quote;
        if char == '"' {
            in_quote = !in_quote;
            saw_quote = true;
            quoted |= text.is_empty();
        }
    }
    let word = Word { text, quoted, line: first.line, column: first.column };
    (saw_quote || !word.text.is_empty()).then_some((word, comma, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(text: &str) -> Vec<Vec<Vec<String>>> {
        let field = |field: &Field| field.iter().map(|word| word.text.clone()).collect();
        lines(text).iter().map(|line| line.iter().map(field).collect()).collect()
    }

    #[test]
    fn words_are_split_as_postgresql_splits_them() {
        assert_eq!(texts("# nothing\n\n  \t\r\n"), Vec::<Vec<Vec<String>>>::new());
        assert_eq!(texts("host a,b c#d e"), [[vec!["host"], vec!["a", "b"], vec!["c"]]]);
        assert_eq!(texts("\"a b\",\"c\"\"d\" \"\""), [[vec!["a b", "c\"d"], vec![""]]]);
        assert_eq!(texts("a, b ,c"), [[vec!["a", "b"], vec!["c"]]]);
        assert_eq!(texts("\"#\" x\"y z\""), [[vec!["#"], vec!["xy z"]]]);
        assert_eq!(texts("a \\\nb\\\nc\nd"), [vec![vec!["a"], vec!["bc"]], vec![vec!["d"]]]);
        assert_eq!(texts("a \\"), [[vec!["a"]]]);
    }

    #[test]
    fn words_know_their_place_and_whether_they_are_quoted() {
        let lines = lines("host  all \\\n \"all\"  x\"all\"\n");
        let places: Vec<_> = lines[0].iter().map(|field| (field[0].line, field[0].column)).collect();
        assert_eq!(places, [(1, 1), (1, 7), (2, 2), (2, 9)]);
        let special: Vec<_> = lines[0].iter().map(|field| field[0].is("all")).collect();
        assert_eq!(special, [false, true, false, false]);
    }

    proptest! {
        #[test]
        fn no_word_is_lost_or_made_up(words in prop::collection::vec(prop::collection::vec("[^\0\n]{0,6}", 1..4), 1..5)) {
            let quote = |word: &String| format!("\"{}\"", word.replace('"', "\"\""));
            let line = words.iter().map(|field| field.iter().map(quote).collect::<Vec<_>>().join(","));
            let line = line.collect::<Vec<_>>().join(" ");
            // A carriage return before the line's end belongs to the line's end.
            prop_assume!(!line.ends_with('\\'));
            prop_assert_eq!(texts(&line), vec![words]);
        }

        #[test]
        fn any_text_is_split(text in "\\PC*|[\"#,@\\\\ \t\na-c]*") {
            let _ = lines(&text);
        }
    }
}
