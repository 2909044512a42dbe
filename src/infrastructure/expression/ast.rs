//! What an expression is made of, after it was read.

use super::{functions::Function, number::Decimal};

/// One node, and where it stands in the text (in bytes).
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: usize,
    pub(super) kind: Kind,
    /// How deep it nests: 1 for a leaf.
    pub(super) depth: usize,
}

#[derive(Debug)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Int(i64),
    Decimal(Decimal),
    /// A number with more digits than are calculated with.
    Written(Box<str>),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    Variable(Variable),
    /// A variable of a comprehension, by its place.
    Local(usize),
    Field(Box<Node>, Box<str>),
    Has(Box<Node>, Box<str>),
    Index(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    /// All of them; at least two.
    And(Vec<Node>),
    /// Any of them; at least two.
    Or(Vec<Node>),
    Binary(Operator, Box<Node>, Box<Node>),
    Conditional(Box<[Node; 3]>),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Call(Function, Vec<Node>),
    Comprehension(Box<Comprehension>),
}

/// What an event has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variable {
    Id,
    Type,
    Source,
    Subject,
    Time,
    TenantId,
    Data,
    Metadata,
    Response,
}

impl Variable {
    /// All of them; the last one is not there for every expression.
    pub(super) const ALL: [(&'static str, Self); 9] = [
        ("id", Self::Id),
        ("type", Self::Type),
        ("source", Self::Source),
        ("subject", Self::Subject),
        ("time", Self::Time),
        ("tenantId", Self::TenantId),
        ("data", Self::Data),
        ("metadata", Self::Metadata),
        ("response", Self::Response),
    ];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// What is done with every entry of a list, or every key of a map.
#[derive(Debug)]
pub(super) struct Comprehension {
    pub(super) kind: Fold,
    pub(super) over: Node,
    /// Whether an entry counts; what is asked of it.
    pub(super) condition: Option<Node>,
    /// What becomes of it.
    pub(super) result: Option<Node>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fold {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}
