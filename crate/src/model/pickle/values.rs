//! What a pickle is made of, as it stands on the stack of the machine. Values refer to things by number, so that no
//! nesting is too deep.

/// A value on the stack, in a thing, or in the memo.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Text, as a stretch of the pickle.
    Text(Span),
    /// A thing of the machine, by number.
    Thing(u32),
    /// Bytes, integers of more than eight bytes: nothing that leads to a tensor or is a setting.
    Other,
}

/// A stretch of the pickle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub start: u32,
    pub len: u32,
}

/// What values are made of.
#[derive(Debug)]
pub(super) enum Thing {
    /// A class or function by name.
    Global {
        module: Span,
        name: Span,
    },
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Object(Box<Object>),
    Storage(Storage),
    Tensor(Box<View>),
}

/// What a call gives that is not known here, or an object of a class: a subclass of dict among them.
#[derive(Debug)]
pub(super) struct Object {
    /// What is called.
    pub class: Value,
    /// Whether it is called as a function, and not made empty and filled.
    pub called: bool,
    pub args: Value,
    pub items: Vec<(Value, Value)>,
    pub list: Vec<Value>,
    pub state: Value,
}

/// Elements of tensors, whose bytes are another part of the archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    /// The class that it is of.
    pub class: Value,
    /// The name of the part.
    pub key: Value,
    pub elements: u64,
}

/// A tensor: a view of a storage.
#[derive(Debug)]
pub(super) struct View {
    pub storage: Storage,
    pub offset: u64,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
    /// Its dtype, where it is not that of the storage.
    pub dtype: Value,
}
