//! `keyword`

use metako_core::plugin::{
    BuildError, Class, Classification, Effects, QueryClassifier, QueryClassifierSpec, Span,
};
use metako_core::register_strategy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::catalog::Catalog;
use super::statement;
use metako_core::sql::Lexer;

/// Tells reads from writes by tokens, without a grammar and without knowledge of the database. A statement is a read
/// only if it begins like one, and holds no locking clause, no word that modifies data, no view that speaks of one node
/// only, and no call of a function that is not on a list of built-in ones. All else goes to the primary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeywordSpec {}

#[typetag::serde(name = "keyword")]
impl QueryClassifierSpec for KeywordSpec {
    fn build(&self) -> Result<Box<dyn QueryClassifier>, BuildError> {
        Ok(Box::new(Keyword { catalog: Catalog::new() }))
    }
}

register_strategy!(QueryClassifier, "keyword", KeywordSpec);

/// The running `keyword`. One pass over the text, no allocation.
#[derive(Debug)]
pub struct Keyword {
    catalog: Catalog,
}

impl QueryClassifier for Keyword {
    fn classify(&self, sql: &[u8]) -> Classification {
        let mut lexer = Lexer::new(sql);
        let mut strongest =
            Classification::new(Class::Empty, "nothing but white space and comments", Span::default());
        let (mut statements, mut effects) = (0_usize, Effects::NONE);
        while !lexer.is_at_end() {
            let verdict = statement::classify(&mut lexer, &self.catalog);
            if verdict.class != Class::Empty {
                statements += 1;
                effects = effects.and(verdict.effects);
            }
            if verdict.class > strongest.class {
                strongest = verdict;
            }
        }
        if statements > 1 {
            strongest.transaction = None;
        }
        strongest.with_effects(effects)
    }
}
