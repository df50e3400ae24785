//! The pickle machine: opcodes of protocols 0 to 5 on a stack of values. It builds values and runs nothing: what a
//! pickle would call is looked at by name ([`super::calls`]), and becomes an opaque object where it is not known.
//! What they take of memory is counted.

use super::values::{Object, Span, Thing, Value, View};
use std::borrow::Cow;
use std::collections::HashMap;

/// What went wrong, for a sentence that says in which file.
pub(super) type Told<T> = Result<T, String>;

/// A pickle on its way.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    things: Vec<Thing>,
    /// Bytes of memory that it may still take.
    room: usize,
}

impl<'a> Machine<'a> {
    /// Runs a pickle up to its end, and returns the machine with the value that the pickle is of.
    pub fn run(bytes: &'a [u8], room: usize) -> Told<(Self, Value)> {
        if u32::try_from(bytes.len()).is_err() {
            return Err("its pickle has over 4 GiB beside its tensors".to_string());
        }
        let (stack, marks, memo, things) = (vec![], vec![], HashMap::new(), vec![]);
        let mut machine = Self { bytes, at: 0, stack, marks, memo, things, room };
        loop {
            let at = machine.at;
            let told = |what: String| format!("{what} at byte {at} of its pickle");
            if machine.step().map_err(told)? {
                let value = machine.pop().map_err(told)?;
                return Ok((machine, value));
            }
        }
    }

    /// A thing by its value.
    pub fn thing(&self, value: Value) -> Option<&Thing> {
        match value {
            Value::Thing(number) => self.things.get(number as usize),
            _ => None,
        }
    }

    fn thing_mut(&mut self, value: Value) -> Option<&mut Thing> {
        match value {
            Value::Thing(number) => self.things.get_mut(number as usize),
            _ => None,
        }
    }

    /// The text of a value.
    pub fn text(&self, value: Value) -> Option<Cow<'a, str>> {
        match value {
            Value::Text(span) => Some(self.span(span)),
            _ => None,
        }
    }

    /// A value as the key of a dict: text, or the digits of an integer.
    pub fn key(&self, value: Value) -> Option<String> {
        match value {
            Value::Int(number) => Some(number.to_string()),
            _ => self.text(value).map(Cow::into_owned),
        }
    }

    fn span(&self, span: Span) -> Cow<'a, str> {
        let start = span.start as usize;
        String::from_utf8_lossy(&self.bytes[start..start + span.len as usize])
    }

    /// Module and name of a class or function.
    pub fn global(&self, value: Value) -> Option<(Cow<'a, str>, Cow<'a, str>)> {
        match self.thing(value) {
            Some(Thing::Global { module, name }) => Some((self.span(*module), self.span(*name))),
            _ => None,
        }
    }

    /// The values of a tuple or list.
    pub fn values(&self, value: Value) -> Option<&[Value]> {
        match self.thing(value) {
            Some(Thing::Tuple(values) | Thing::List(values)) => Some(values),
            _ => None,
        }
    }

    /// Counts memory that is about to be taken.
    pub fn take_room(&mut self, bytes: usize) -> Told<()> {
        let left = self.room.checked_sub(bytes);
        self.room = left.ok_or("it would take many times its size in memory")?;
        Ok(())
    }

    pub fn make(&mut self, thing: Thing) -> Told<Value> {
        let inside = match &thing {
            Thing::Tuple(values) | Thing::List(values) => values.capacity() * size_of::<Value>(),
            Thing::Dict(items) => items.capacity() * 2 * size_of::<Value>(),
            Thing::Object(_) => size_of::<Object>(),
            Thing::Tensor(view) => size_of::<View>() + 16 * view.shape.len(),
            _ => 0,
        };
        self.take_room(size_of::<Thing>() + inside)?;
        self.things.push(thing);
        Ok(Value::Thing((self.things.len() - 1) as u32))
    }

    fn push(&mut self, value: Value) -> Told<()> {
        self.take_room(size_of::<Value>())?;
        self.stack.push(value);
        Ok(())
    }

    fn push_thing(&mut self, thing: Thing) -> Told<()> {
        let value = self.make(thing)?;
        self.push(value)
    }

    /// What lies above the last mark may be taken, and nothing below it.
    fn pop(&mut self) -> Told<Value> {
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err("nothing is left on the stack".to_string());
        }
        self.stack.pop().ok_or_else(|| "nothing is left on the stack".to_string())
    }

    fn top(&self) -> Told<Value> {
        self.stack.last().copied().ok_or_else(|| "nothing is on the stack".to_string())
    }

    fn pop_to_mark(&mut self) -> Told<Vec<Value>> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn next(&mut self, count: usize) -> Told<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let bytes = &self.bytes[self.at..end.ok_or("the pickle is cut short")?];
        self.at += count;
        Ok(bytes)
    }

    /// A little-endian number of a few bytes.
    fn number(&mut self, count: usize) -> Told<u64> {
        Ok(self.next(count)?.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// The stretch of so many bytes as the number of `count` bytes that comes first says.
    fn counted(&mut self, count: usize) -> Told<Span> {
        let len = self.number(count)?;
        let start = self.at as u32;
        self.next(usize::try_from(len).map_err(|_| "the pickle is cut short")?)?;
        Ok(Span { start, len: len as u32 })
    }

    /// A line, without its end.
    fn line(&mut self) -> Told<Span> {
        let start = self.at;
        let end = self.bytes[start..].iter().position(|&byte| byte == b'\n');
        let len = end.ok_or("the pickle is cut short")?;
        self.at = start + len + 1;
        Ok(Span { start: start as u32, len: len as u32 })
    }

    /// A number of eight bytes or less in two's complement.
    fn long(&self, span: Span) -> Value {
        let bytes = &self.bytes[span.start as usize..(span.start + span.len) as usize];
        match bytes.len() {
            0 => Value::Int(0),
            1..=8 => {
                let fill = if bytes[bytes.len() - 1] & 0x80 == 0 { 0 } else { 0xff };
                let mut wide = [fill; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            _ => Value::Other,
        }
    }

    fn decimal(&mut self) -> Told<Value> {
        let line = self.line()?;
        let text = self.span(line);
        Ok(match text.trim().trim_end_matches('L') {
            "00" => Value::Bool(false),
            "01" => Value::Bool(true),
            digits => digits.parse().map_or(Value::Other, Value::Int),
        })
    }

    fn remember(&mut self, number: u64) -> Told<()> {
        let value = self.top()?;
        self.take_room(2 * size_of::<(u64, Value)>())?;
        self.memo.insert(number, value);
        Ok(())
    }

    fn recall(&mut self, number: u64) -> Told<()> {
        let value = self.memo.get(&number).copied().ok_or("nothing was remembered under this number")?;
        self.push(value)
    }

    /// Adds values to a list or what acts as one; sets need not be known.
    fn append(&mut self, values: Vec<Value>) -> Told<()> {
        self.take_room(values.len() * 2 * size_of::<Value>())?;
        let target = self.top()?;
        match self.thing_mut(target) {
            Some(Thing::List(list)) => list.extend(values),
            Some(Thing::Object(object)) => object.list.extend(values),
            _ => {}
        }
        Ok(())
    }

    /// Adds keys with values to a dict or what acts as one.
    fn set(&mut self, values: Vec<Value>) -> Told<()> {
        if values.len() % 2 == 1 {
            return Err("a key has no value".to_string());
        }
        self.take_room(values.len() * 2 * size_of::<Value>())?;
        let pairs = values.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        let target = self.top()?;
        match self.thing_mut(target) {
            Some(Thing::Dict(items)) => items.extend(pairs),
            Some(Thing::Object(object)) => object.items.extend(pairs),
            _ => {}
        }
        Ok(())
    }

    fn object(&mut self, class: Value, args: Value) -> Told<()> {
        let thing = Object { class, called: false, args, items: vec![], list: vec![], state: Value::None };
        self.push_thing(Thing::Object(Box::new(thing)))
    }

    fn tuple(&mut self, count: usize) -> Told<()> {
        let mut values = (0..count).map(|_| self.pop()).collect::<Told<Vec<Value>>>()?;
        values.reverse();
        self.push_thing(Thing::Tuple(values))
    }

    /// Carries out one opcode; true if it was the last.
    fn step(&mut self) -> Told<bool> {
        match self.next(1)?[0] {
            b'.' => return Ok(true),
            // The protocol, a frame's length: what follows says it all.
            0x80 => self.next(1).map(|_| ())?,
            0x95 => self.next(8).map(|_| ())?,
            // A buffer that lies elsewhere, and that it is not to be changed.
            0x97 => self.push(Value::Other)?,
            0x98 => {}
            b'(' => {
                self.take_room(size_of::<usize>())?;
                self.marks.push(self.stack.len());
            }
            // POP takes a mark if it lies on top.
            b'0' if self.marks.last() == Some(&self.stack.len()) => self.marks.truncate(self.marks.len() - 1),
            b'0' => self.pop().map(|_| ())?,
            b'1' => self.pop_to_mark().map(|_| ())?,
            b'2' => self.top().and_then(|value| self.push(value))?,
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => self.number(1).and_then(|n| self.push(Value::Int(n as i64)))?,
            b'M' => self.number(2).and_then(|n| self.push(Value::Int(n as i64)))?,
            b'J' => self.number(4).and_then(|n| self.push(Value::Int(i64::from(n as u32 as i32))))?,
            b'I' | b'L' => self.decimal().and_then(|value| self.push(value))?,
            code @ (0x8a | 0x8b) => {
                let span = self.counted(if code == 0x8a { 1 } else { 4 })?;
                let value = self.long(span);
                self.push(value)?;
            }
            // Its eight bytes are those of a number, the highest first.
            b'G' => self.number(8).and_then(|n| self.push(Value::Float(f64::from_bits(n.swap_bytes()))))?,
            b'F' => {
                let line = self.line()?;
                let value = self.span(line).trim().parse().map_or(Value::Other, Value::Float);
                self.push(value)?;
            }
            b'X' | b'T' => self.counted(4).and_then(|text| self.push(Value::Text(text)))?,
            b'U' | 0x8c => self.counted(1).and_then(|text| self.push(Value::Text(text)))?,
            0x8d => self.counted(8).and_then(|text| self.push(Value::Text(text)))?,
            b'V' => self.line().and_then(|text| self.push(Value::Text(text)))?,
            b'S' => {
                let line = self.line()?;
                // In quotes of either kind.
                let inside = Span { start: line.start + 1, len: line.len.saturating_sub(2) };
                self.push(Value::Text(if line.len < 2 { line } else { inside }))?;
            }
            b'C' => self.counted(1).and_then(|_| self.push(Value::Other))?,
            b'B' => self.counted(4).and_then(|_| self.push(Value::Other))?,
            0x8e | 0x96 => self.counted(8).and_then(|_| self.push(Value::Other))?,
            b')' => self.push_thing(Thing::Tuple(vec![]))?,
            b't' => self.pop_to_mark().and_then(|values| self.push_thing(Thing::Tuple(values)))?,
            code @ 0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b']' | 0x8f => self.push_thing(Thing::List(vec![]))?, // a set is not asked for its order
            b'l' | 0x91 => self.pop_to_mark().and_then(|values| self.push_thing(Thing::List(values)))?,
            b'}' => self.push_thing(Thing::Dict(vec![]))?,
            b'd' => {
                let values = self.pop_to_mark()?;
                self.push_thing(Thing::Dict(vec![]))?;
                self.set(values)?;
            }
            b'a' => self.pop().and_then(|value| self.append(vec![value]))?,
            b'e' | 0x90 => self.pop_to_mark().and_then(|values| self.append(values))?,
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => self.pop_to_mark().and_then(|values| self.set(values))?,
            b'p' => match self.decimal()? {
                Value::Int(number) => self.remember(number as u64)?,
                _ => return Err("a number of the memo is none".to_string()),
            },
            b'q' => self.number(1).and_then(|n| self.remember(n))?,
            b'r' => self.number(4).and_then(|n| self.remember(n))?,
            0x94 => self.remember(self.memo.len() as u64)?,
            b'g' => match self.decimal()? {
                Value::Int(number) => self.recall(number as u64)?,
                _ => return Err("a number of the memo is none".to_string()),
            },
            b'h' => self.number(1).and_then(|n| self.recall(n))?,
            b'j' => self.number(4).and_then(|n| self.recall(n))?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_thing(Thing::Global { module, name })?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => {
                    self.push_thing(Thing::Global { module, name })?
                }
                _ => return Err("a global has no name".to_string()),
            },
            // Numbers of a registry that only the writer's machine has.
            0x82 => self.next(1).and_then(|_| self.push(Value::Other))?,
            0x83 => self.next(2).and_then(|_| self.push(Value::Other))?,
            0x84 => self.next(4).and_then(|_| self.push(Value::Other))?,
            b'P' => {
                self.line()?;
                self.push(Value::Other)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let value = self.persistent(id)?;
                self.push(value)?;
            }
            b'R' => {
                let (args, function) = (self.pop()?, self.pop()?);
                let value = self.call(function, args)?;
                self.push(value)?;
            }
            0x81 => {
                let (args, class) = (self.pop()?, self.pop()?);
                self.object(class, args)?;
            }
            0x92 => {
                let (_, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.object(class, args)?;
            }
            b'o' => {
                let mut values = self.pop_to_mark()?;
                let class = if values.is_empty() { Value::None } else { values.remove(0) };
                let args = self.make(Thing::Tuple(values))?;
                self.object(class, args)?;
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                let values = self.pop_to_mark()?;
                let (class, args) =
                    (self.make(Thing::Global { module, name })?, self.make(Thing::Tuple(values))?);
                self.object(class, args)?;
            }
            b'b' => {
                let (state, target) = (self.pop()?, self.top()?);
                if let Some(Thing::Object(object)) = self.thing_mut(target) {
                    object.state = state;
                }
            }
            code => return Err(format!("unknown opcode {code:#04x}")),
        }
        Ok(false)
    }
}
