//! The fields that every registry entity and every command about one have.

use crate::domain::entities::{EntityMeta, Labels};

use super::fields::{Fields, Text};

/// Longest name, in characters.
const MAX_NAME: usize = 255;
/// Longest description, in characters.
const MAX_DESCRIPTION: usize = 10_000;
/// How many tags an entity may have.
const MAX_TAGS: usize = 50;
/// Longest tag, in characters.
const MAX_TAG: usize = 100;

/// What a name may be.
pub(super) const NAME: Text = Text::Line(MAX_NAME);
/// What a tag may be.
pub(super) const TAG: Text = Text::Line(MAX_TAG);

/// Labels that are given; what is absent stays.
#[derive(Debug, Default)]
pub(super) struct GivenLabels {
    name: Option<String>,
    #[expect(
        clippy::option_option,
        reason = "absent, removed and given are three things"
    )]
    description: Option<Option<String>>,
    tags: Option<Vec<String>>,
}

/// Reads `name`, `description` (`null` removes it) and `tags`.
pub(super) fn labels(fields: &mut Fields) -> GivenLabels {
    GivenLabels {
        name: fields.text("name", NAME),
        description: fields.removable_text("description", Text::Block(MAX_DESCRIPTION)),
        tags: fields.texts("tags", 0..=MAX_TAGS, |tag| TAG.problem(tag)),
    }
}

impl GivenLabels {
    /// The labels of a new entity; `None` without a name.
    pub(super) fn for_new(self) -> Option<Labels> {
        Some(Labels {
            name: self.name?,
            description: self.description.flatten(),
            tags: self.tags.unwrap_or_default(),
        })
    }

    /// Puts what is given in the place of what was.
    pub(super) fn put(self, meta: &mut EntityMeta) {
        if let Some(name) = self.name {
            meta.name = name;
        }
        if let Some(description) = self.description {
            meta.description = description;
        }
        if let Some(tags) = self.tags {
            meta.tags = tags;
        }
    }
}

/// Reads `expectedVersion`.
pub(super) fn expected_version(fields: &mut Fields) -> Option<i64> {
    fields.integer("expectedVersion", 1..=i64::MAX)
}
