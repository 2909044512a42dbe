//! Which webhooks an event goes to: exact types by a hash map, patterns by a trie of their tokens, each
//! tenant for itself.
//!
//! What a lookup costs depends on the tokens of the type and on what matches, not on how many webhooks
//! there are. A clone shares everything; a change copies only the path to what it changes.

use std::{str::Split, sync::Arc};

use crate::{
    domain::values::{EventPattern, PatternToken, TenantId, WebhookId},
    shared::cow_map::CowMap,
};

/// The patterns of all webhooks.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    tenants: CowMap<TenantId, Arc<TenantMatcher>>,
}

#[derive(Debug, Clone, Default)]
struct TenantMatcher {
    exact: CowMap<Arc<str>, Arc<Ids>>,
    patterns: Node,
}

/// Webhooks in the order of their ids.
#[derive(Debug, Clone, Default)]
struct Ids(Vec<WebhookId>);

/// A place in the trie: the tokens on the way to it have matched.
#[derive(Debug, Clone, Default)]
struct Node {
    /// Patterns that end here.
    ends: Ids,
    /// Patterns that go on with `>`.
    rest: Ids,
    /// Patterns that go on with `*`.
    any: Option<Arc<Self>>,
    /// Patterns that go on with this token.
    next: CowMap<Arc<str>, Arc<Self>>,
}

impl Matcher {
    /// Lets a webhook receive what matches the pattern; doing it twice is doing it once.
    pub fn add(&mut self, tenant: &TenantId, pattern: &EventPattern, webhook: WebhookId) {
        let of_tenant = Arc::make_mut(self.tenants.entry(tenant.clone(), Arc::default));
        if is_exact(pattern) {
            let ids = of_tenant.exact.entry(pattern.as_str().into(), Arc::default);
            Arc::make_mut(ids).add(webhook);
        } else {
            of_tenant.patterns.add(pattern, webhook);
        }
    }

    /// Takes back what [`Self::add`] did. `*` and `>` alone are the same pattern.
    pub fn remove(&mut self, tenant: &TenantId, pattern: &EventPattern, webhook: WebhookId) {
        let Some(of_tenant) = self.tenants.get_mut(tenant).map(Arc::make_mut) else {
            return;
        };
        if is_exact(pattern) {
            let text = pattern.as_str();
            if let Some(ids) = of_tenant.exact.get_mut(text).map(Arc::make_mut) {
                ids.remove(webhook);
                if ids.0.is_empty() {
                    of_tenant.exact.remove(text);
                }
            }
        } else {
            of_tenant.patterns.remove(&mut pattern.tokens(), webhook);
        }
        if of_tenant.exact.is_empty() && of_tenant.patterns.is_empty() {
            self.tenants.remove(tenant);
        }
    }

    /// The webhooks that an event of this type goes to, each once, in the order of their ids.
    pub fn matches(&self, tenant: &TenantId, event_type: &str) -> Vec<WebhookId> {
        let Some(of_tenant) = self.tenants.get(tenant) else {
            return Vec::new();
        };
        let exact = of_tenant.exact.get(event_type);
        let mut found = exact.map_or_else(Vec::new, |ids| ids.0.clone());
        of_tenant
            .patterns
            .collect(event_type.split('.'), &mut found);
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.ends.0.is_empty()
            && self.rest.0.is_empty()
            && self.any.is_none()
            && self.next.is_empty()
    }

    fn add(&mut self, pattern: &EventPattern, webhook: WebhookId) {
        let mut node = self;
        for token in pattern.tokens() {
            node = match token {
                PatternToken::Rest => return node.rest.add(webhook),
                PatternToken::Any => Arc::make_mut(node.any.get_or_insert_default()),
                PatternToken::Exact(text) => {
                    Arc::make_mut(node.next.entry(text.into(), Arc::default))
                }
            };
        }
        node.ends.add(webhook);
    }

    /// Recursion ends with the pattern: at most 128 tokens fit into its 255 bytes.
    fn remove(&mut self, tokens: &mut dyn Iterator<Item = PatternToken<'_>>, webhook: WebhookId) {
        match tokens.next() {
            None => self.ends.remove(webhook),
            Some(PatternToken::Rest) => self.rest.remove(webhook),
            Some(PatternToken::Any) => {
                if let Some(node) = self.any.as_mut().map(Arc::make_mut) {
                    node.remove(tokens, webhook);
                    if node.is_empty() {
                        self.any = None;
                    }
                }
            }
            Some(PatternToken::Exact(text)) => {
                if let Some(node) = self.next.get_mut(text).map(Arc::make_mut) {
                    node.remove(tokens, webhook);
                    if node.is_empty() {
                        self.next.remove(text);
                    }
                }
            }
        }
    }

    /// Recursion ends with the trie, which is as deep as its longest pattern.
    fn collect(&self, mut tokens: Split<'_, char>, found: &mut Vec<WebhookId>) {
        let Some(token) = tokens.next() else {
            found.extend_from_slice(&self.ends.0);
            return;
        };
        found.extend_from_slice(&self.rest.0);
        if let Some(any) = &self.any {
            any.collect(tokens.clone(), found);
        }
        if let Some(next) = self.next.get(token) {
            next.collect(tokens, found);
        }
    }
}

impl Ids {
    fn add(&mut self, webhook: WebhookId) {
        if let Err(position) = self.0.binary_search(&webhook) {
            self.0.insert(position, webhook);
        }
    }

    fn remove(&mut self, webhook: WebhookId) {
        if let Ok(position) = self.0.binary_search(&webhook) {
            self.0.remove(position);
        }
    }
}

fn is_exact(pattern: &EventPattern) -> bool {
    pattern
        .tokens()
        .all(|token| matches!(token, PatternToken::Exact(_)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::try_new(name).unwrap()
    }

    fn pattern(text: &str) -> EventPattern {
        EventPattern::try_new(text).unwrap()
    }

    fn webhook(number: u128) -> WebhookId {
        WebhookId(uuid::Uuid::from_u128(number))
    }

    /// The rule itself, one pattern at a time.
    fn fits(pattern: &str, event_type: &str) -> bool {
        if pattern == "*" || pattern == ">" {
            return true;
        }
        let (mut tokens, mut wanted) = (event_type.split('.'), pattern.split('.'));
        loop {
            match (wanted.next(), tokens.next()) {
                (None, None) | (Some(">"), Some(_)) => return true,
                (Some("*"), Some(_)) => {}
                (Some(wanted), Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
    }

    #[test]
    fn patterns_match_by_the_rules_of_nats() {
        for (text, event_type, expected) in [
            ("order.created", "order.created", true),
            ("order.created", "order.created.x", false),
            ("order", "order.created", false),
            ("order.*", "order.created", true),
            ("order.*", "order", false),
            ("order.*", "order.a.b", false),
            ("*.created", "order.created", true),
            ("order.>", "order.a.b", true),
            ("order.>", "order", false),
            ("*.*", "a.b", true),
            ("*.>", "a", false),
            ("*", "a", true),
            ("*", "a.b.c", true),
            (">", "a.b.c", true),
            ("a.*", "a.", true),
            ("a.*", "a.*", true),
            ("a.b", "a.*", false),
            ("a.b", "A.b", false),
        ] {
            let mut matcher = Matcher::default();
            matcher.add(&tenant("t"), &pattern(text), webhook(1));
            let found = matcher.matches(&tenant("t"), event_type);
            assert_eq!(
                found.len(),
                usize::from(expected),
                "{text} and {event_type}"
            );
            assert_eq!(fits(text, event_type), expected, "{text} and {event_type}");
            let alone = pattern(text).matches(event_type);
            assert_eq!(alone, expected, "{text} and {event_type}");
        }
    }

    #[test]
    fn each_webhook_is_found_once_in_order_and_only_in_its_tenant() {
        let mut matcher = Matcher::default();
        for text in ["order.>", "*", "order.created", "*.created", "order.*"] {
            for number in [3, 1, 2] {
                matcher.add(&tenant("a"), &pattern(text), webhook(number));
            }
            matcher.add(&tenant("b"), &pattern(text), webhook(4));
        }
        let found = matcher.matches(&tenant("a"), "order.created");
        assert_eq!(found, [webhook(1), webhook(2), webhook(3)]);
        assert_eq!(matcher.matches(&tenant("b"), "order.created"), [webhook(4)]);
        assert!(matcher.matches(&tenant("c"), "order.created").is_empty());
    }

    const TOKENS: &str = "a|b|c";
    type Row = (String, u8, u8);

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let token = prop_oneof![3 => TOKENS, 1 => Just("*".to_owned())];
        let pattern =
            (prop::collection::vec(token, 0..4), any::<bool>()).prop_map(|(mut t, rest)| {
                if rest || t.is_empty() {
                    t.push(">".to_owned());
                }
                t.join(".")
            });
        prop::collection::vec((pattern, 0_u8..2, 0_u8..20), 0..60)
    }

    fn check(matcher: &Matcher, rows: &[Row], event_type: &str) {
        for number in 0..2 {
            let of_tenant = rows.iter().filter(|row| row.1 == number);
            let fitting = of_tenant.filter(|row| fits(&row.0, event_type));
            let mut expected: Vec<_> = fitting.map(|row| webhook(row.2.into())).collect();
            expected.sort_unstable();
            expected.dedup();
            let found = matcher.matches(&tenant(&number.to_string()), event_type);
            assert_eq!(found, expected, "{event_type}");
        }
    }

    proptest! {
        #[test]
        fn the_matcher_finds_what_trying_every_pattern_finds(
            mut rows in rows(),
            types in prop::collection::vec(prop::collection::vec(TOKENS, 1..5), 1..8),
            leave in any::<prop::sample::Index>(),
        ) {
            for row in rows.iter_mut().filter(|row| row.0 == "*") {
                row.0 = ">".to_owned();
            }
            rows.sort();
            rows.dedup();
            let types: Vec<_> = types.into_iter().map(|tokens| tokens.join(".")).collect();
            let mut matcher = Matcher::default();
            for (text, number, id) in &rows {
                matcher.add(&tenant(&number.to_string()), &pattern(text), webhook((*id).into()));
            }
            let whole = matcher.clone();
            let kept = rows.split_at(leave.index(rows.len() + 1));
            for (text, number, id) in kept.1 {
                matcher.remove(&tenant(&number.to_string()), &pattern(text), webhook((*id).into()));
            }
            for event_type in &types {
                check(&whole, &rows, event_type);
                check(&matcher, kept.0, event_type);
            }
            for (text, number, id) in kept.0 {
                matcher.remove(&tenant(&number.to_string()), &pattern(text), webhook((*id).into()));
            }
            prop_assert!(matcher.tenants.is_empty(), "nothing is left behind");
        }
    }
}
