//! What the calls in a pickle of `torch.save` would give, by the names of what is called.

use super::machine::{Machine, Told};
use super::values::{Object, Storage, Thing, Value, View};
use candle_core::DType;

/// How deep calls may be wrapped in calls: a parameter of a tensor of a subclass is three.
const WRAPPED: usize = 8;

impl Machine<'_> {
    /// What a persistent id stands for: `("storage", class, key, device, elements)`.
    pub(super) fn persistent(&mut self, id: Value) -> Told<Value> {
        let storage = match self.values(id) {
            Some([tag, class, key, _, Value::Int(elements), ..])
                if self.text(*tag).as_deref() == Some("storage") =>
            {
                let elements = u64::try_from(*elements).map_err(|_| "a storage has a negative size")?;
                Storage { class: *class, key: *key, elements }
            }
            _ => return Ok(Value::Other),
        };
        self.make(Thing::Storage(storage))
    }

    /// What a function or class gives for these arguments; an opaque object if it is not known.
    pub(super) fn call(&mut self, function: Value, args: Value) -> Told<Value> {
        let (mut function, mut args) = (function, args);
        for _ in 0..WRAPPED {
            let Some((module, name)) = self.global(function) else { break };
            let given: Vec<Value> =
                self.values(args).map_or(vec![], |args| args[..args.len().min(9)].to_vec());
            match (&*module, &*name) {
                ("collections", "OrderedDict") | ("builtins" | "__builtin__", "dict") => {
                    return self.dict(given.first().copied());
                }
                ("collections", "defaultdict") => return self.dict(given.get(1).copied()),
                ("torch", "Size") | ("builtins" | "__builtin__", "list" | "tuple") if given.len() == 1 => {
                    return Ok(given[0]);
                }
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
                    if !given.is_empty() =>
                {
                    return Ok(given[0]);
                }
                ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                    return self.view(&given, Value::None);
                }
                ("torch._utils", "_rebuild_tensor_v3") => {
                    return self.view(&given, given.get(6).copied().unwrap_or(Value::None));
                }
                // A tensor of a subclass: (function, class, its arguments, state).
                ("torch._tensor" | "torch.tensor", "_rebuild_from_type" | "_rebuild_from_type_v2")
                    if given.len() >= 3 =>
                {
                    (function, args) = (given[0], given[2]);
                }
                _ => break,
            }
        }
        let (items, list) = (vec![], vec![]);
        let object = Object { class: function, called: true, args, items, list, state: Value::None };
        self.make(Thing::Object(Box::new(object)))
    }

    /// A dict, of pairs or another dict if one is given.
    fn dict(&mut self, of: Option<Value>) -> Told<Value> {
        let pairs: Vec<(Value, Value)> = match of.and_then(|of| self.thing(of)) {
            Some(Thing::Dict(items)) => items.clone(),
            Some(Thing::List(pairs) | Thing::Tuple(pairs)) => pairs
                .iter()
                .filter_map(|pair| match self.values(*pair) {
                    Some([key, value]) => Some((*key, *value)),
                    _ => None,
                })
                .collect(),
            _ => vec![],
        };
        self.make(Thing::Dict(pairs))
    }

    /// A tensor: `(storage, offset, shape, strides, …)`.
    fn view(&mut self, args: &[Value], dtype: Value) -> Told<Value> {
        let [storage, Value::Int(offset), shape, strides, ..] = args else {
            return Err("a tensor's arguments are not those of one".to_string());
        };
        let Some(Thing::Storage(storage)) = self.thing(*storage) else {
            return Err("a tensor has no storage (a pickle of protocol 0 cannot hold one)".to_string());
        };
        let numbers = |value: &Value| -> Option<Vec<usize>> {
            let number = |value: &Value| match value {
                Value::Int(n) => usize::try_from(*n).ok(),
                _ => None,
            };
            self.values(*value).filter(|values| values.len() <= 64)?.iter().map(number).collect()
        };
        let (Some(shape), Some(strides), Ok(offset)) =
            (numbers(shape), numbers(strides), u64::try_from(*offset))
        else {
            return Err("a tensor's shape or strides are none".to_string());
        };
        let view = View { storage: *storage, offset, shape, strides, dtype };
        self.make(Thing::Tensor(Box::new(view)))
    }
}

/// The type of a storage's elements, by the class of the storage or the name of a dtype; none if tensors of it cannot
/// be loaded. Of an untyped storage the tensor's dtype tells.
pub(super) fn dtype(name: &str) -> Option<DType> {
    match name {
        "FloatStorage" | "float32" | "float" => Some(DType::F32),
        "DoubleStorage" | "float64" | "double" => Some(DType::F64),
        "HalfStorage" | "float16" | "half" => Some(DType::F16),
        "BFloat16Storage" | "bfloat16" => Some(DType::BF16),
        "float8_e4m3fn" => Some(DType::F8E4M3),
        "ByteStorage" | "uint8" => Some(DType::U8),
        "ShortStorage" | "int16" => Some(DType::I16),
        "IntStorage" | "int32" => Some(DType::I32),
        "LongStorage" | "int64" => Some(DType::I64),
        "uint32" => Some(DType::U32),
        _ => None,
    }
}
