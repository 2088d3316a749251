//! From a tree to typed values: serde's view of a [`Node`], with the place of what is wrong.

use std::fmt;
use std::ops::Range;

use serde::de::value::StringDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::tree::{Entry, Node, Table, Value};

/// Why a tree is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TypeError {
    /// In serde's words.
    pub(crate) message: String,
    /// Where; the innermost value that is known.
    pub(crate) span: Option<Range<usize>>,
}

impl TypeError {
    fn at(mut self, span: &Range<usize>) -> Self {
        self.span.get_or_insert_with(|| span.clone());
        self
    }
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TypeError {}

impl serde::de::Error for TypeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), span: None }
    }
}

/// A table as serde reads it.
pub(crate) struct Typed<'a>(pub(crate) &'a Node);

impl<'de> Deserializer<'de> for Typed<'_> {
    type Error = TypeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        let span = &self.0.span;
        let read = match &self.0.value {
            Value::Text(text) => visitor.visit_string(text.clone()),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::List(items) => visitor.visit_seq(Items(items.iter())),
            Value::Table(table) => visitor.visit_map(Fields { entries: table.entries.iter(), entry: None }),
        };
        read.map_err(|error| error.at(span))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        let span = &self.0.span;
        match &self.0.value {
            Value::Text(text) => {
                visitor.visit_enum(Unit(text.clone().into_deserializer())).map_err(|error| error.at(span))
            }
            other => {
                Err(TypeError::custom(format!("invalid type: {}, expected a name", other.kind())).at(span))
            }
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = TypeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, TypeError> {
        self.0.next().map(|node| seed.deserialize(Typed(node))).transpose()
    }
}

struct Fields<'a> {
    entries: std::slice::Iter<'a, Entry>,
    entry: Option<&'a Entry>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = TypeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TypeError> {
        self.entry = self.entries.next();
        let Some(entry) = self.entry else { return Ok(None) };
        let key: StringDeserializer<TypeError> = entry.key.clone().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.at(&entry.at))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, TypeError> {
        let entry = self.entry.take().ok_or_else(|| TypeError::custom("a value without its key"))?;
        seed.deserialize(Typed(&entry.node)).map_err(|error| error.at(&entry.node.span))
    }
}

struct Unit(StringDeserializer<TypeError>);

impl<'de> EnumAccess<'de> for Unit {
    type Error = TypeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), TypeError> {
        let name = seed.deserialize(self.0.clone())?;
        Ok((name, self))
    }
}

impl<'de> VariantAccess<'de> for Unit {
    type Error = TypeError;

    fn unit_variant(self) -> Result<(), TypeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, TypeError> {
        Err(TypeError::custom("a name is expected, and nothing with it"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, TypeError> {
        Err(TypeError::custom("a name is expected, and nothing with it"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, TypeError> {
        Err(TypeError::custom("a name is expected, and nothing with it"))
    }
}

/// The same table without some of its keys.
pub(crate) fn split(table: Table, keys: &[&str]) -> (Table, Table) {
    let (with, without) = table.entries.into_iter().partition(|entry| keys.contains(&entry.key.as_str()));
    (Table { entries: with }, Table { entries: without })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::tree::parse;
    use super::*;
    use crate::model::{Guest, GuestType};

    fn node(text: &str) -> Node {
        Node { span: 0..text.len(), value: Value::Table(parse(text, 0).unwrap()) }
    }

    #[test]
    fn a_tree_is_read_as_what_it_says() {
        let guest = Guest::deserialize(Typed(&node(
            "name = 'vm'\nat = 'a'\ntype = 'hvm'\nvcpus = 2\n[[hook]]\nname = 'h'\npath = 'p'\nrun = ['x', 'y']\n",
        )))
        .unwrap();
        assert_eq!((guest.kind, guest.vcpus), (Some(GuestType::Hvm), 2));
        assert_eq!(guest.hooks[0].run, ["x", "y"]);
    }

    #[test]
    fn what_is_wrong_has_its_place() {
        let text = "name = 'vm'\nat = 'a'\nmemory = 12\n";
        let error = Guest::deserialize(Typed(&node(text))).unwrap_err();
        assert_eq!(&text[error.span.unwrap()], "12", "{}", error.message);
        let text = "name = 'vm'\nat = 'a'\nmemroy = '1 MiB'\n";
        let error = Guest::deserialize(Typed(&node(text))).unwrap_err();
        assert_eq!(&text[error.span.unwrap()], "memroy");
        let text = "name = 'vm'\nat = 'a'\ntype = 'qemu'\n";
        let error = Guest::deserialize(Typed(&node(text))).unwrap_err();
        assert_eq!(&text[error.span.unwrap()], "'qemu'");
    }
}
