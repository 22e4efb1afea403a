//! A query classifier: `hinted`

use metako_core::plugin::{BuildError, Class, Classification, QueryClassifier, QueryClassifierSpec, Span};
use metako_strategies::KeywordSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// As `keyword`, but a comment at the very start vouches for what that one cannot tell: with `/*metako:read*/` a function
/// of your own may run on a replica. What certainly writes or changes the session stays what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HintedSpec {
    /// The comment's text.
    pub hint: String,
}

impl Default for HintedSpec {
    fn default() -> Self {
        Self { hint: "metako:read".to_owned() }
    }
}

#[typetag::serde(name = "hinted")]
impl QueryClassifierSpec for HintedSpec {
    fn build(&self) -> Result<Box<dyn QueryClassifier>, BuildError> {
        if self.hint.is_empty() || self.hint.contains("*/") || self.hint.contains("/*") {
            return Err(BuildError { option: "hint", problem: "cannot be the text of a comment".to_owned() });
        }
        // The stock classifier answers; this one only lifts a doubt.
        Ok(Box::new(Hinted { comment: format!("/*{}*/", self.hint), inner: KeywordSpec::default().build()? }))
    }
}

metako_core::register_strategy!(QueryClassifier, "hinted", HintedSpec);

/// The running classifier.
pub struct Hinted {
    comment: String,
    inner: Box<dyn QueryClassifier>,
}

impl QueryClassifier for Hinted {
    fn classify(&self, sql: &[u8]) -> Classification {
        let verdict = self.inner.classify(sql);
        if verdict.class == Class::Unknown && sql.starts_with(self.comment.as_bytes()) {
            let span = Span { start: 0, end: self.comment.len() };
            return Classification::new(Class::Read, "a hint says that it only reads", span);
        }
        verdict
    }
}
