use metako_core::plugin::{Class, QueryClassifier, QueryClassifierSpec};

use super::{Numbers, broken, built};

const TEXTS: [&[u8]; 14] = [
    b"",
    b" \n-- nothing",
    b"SELECT 1",
    b"select a from t where b = $1;",
    b"WITH x AS (SELECT 1) SELECT * FROM x",
    b"INSERT INTO t VALUES (1)",
    b"BEGIN",
    b"COMMIT; BEGIN",
    b"SET a = 'b'",
    b"/* unfinished",
    b"'unfinished",
    b"\xff\xfe\x00\x80",
    b"$",
    b")))) ;;;;",
];

/// Checks a query classifier:
///
/// - it has an answer to any bytes, the same each time, with a reason, and its span lies within the text;
/// - it names a transaction verb only for [`Class::TransactionControl`];
/// - a text with an `INSERT` after it is no read.
///
/// A text with a strategy's own hint in it may break the last law on purpose; none of the texts here has one.
pub fn query_classifier(spec: &dyn QueryClassifierSpec) -> Result<(), String> {
    let classifier = built(spec.build())?;
    let mut numbers = Numbers(1);
    for text in TEXTS {
        answers(&*classifier, text)?;
        let more = [text, b"\n; INSERT INTO t VALUES (1)"].concat();
        answers(&*classifier, &more)?;
        let class = classifier.classify(&more).class;
        if class.is_read() {
            return broken(format!("{:?} is {class:?}", String::from_utf8_lossy(&more)));
        }
    }
    for _ in 0..500 {
        let text: Vec<u8> = (0..numbers.below(60)).map(|_| numbers.next().to_le_bytes()[0]).collect();
        answers(&*classifier, &text)?;
    }
    Ok(())
}

fn answers(classifier: &dyn QueryClassifier, text: &[u8]) -> Result<(), String> {
    let verdict = classifier.classify(text);
    let about = || format!("{:?} is {verdict:?}", String::from_utf8_lossy(text));
    if verdict.span.start > verdict.span.end || verdict.span.end > text.len() {
        return broken(format!("{}: the span is not within the text", about()));
    }
    if verdict.transaction.is_some() && verdict.class != Class::TransactionControl {
        return broken(format!("{}: a transaction verb, but not its class", about()));
    }
    if verdict.reason.is_empty() {
        return broken(format!("{}: without a reason", about()));
    }
    if classifier.classify(text) != verdict {
        return broken(format!("{}, and the next time something else", about()));
    }
    Ok(())
}
