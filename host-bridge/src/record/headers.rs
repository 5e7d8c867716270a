//! The request headers of one exchange, by name. Two pieces of memory for all of them, where a map has two for each:
//! there are a dozen in every line of the trace.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};

/// Names and values.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    /// All of them, one after the other.
    text: String,
    /// Where each name ends, and each value.
    ends: Vec<(usize, usize)>,
}

impl Headers {
    /// In the order of their names. Of several with one name the last one counts.
    pub(crate) fn of<V>(mut headers: Vec<(&str, V)>, write: impl Fn(&V, &mut String)) -> Self {
        // Stable: what came later stays later.
        headers.sort_by_key(|(name, _)| *name);
        let mut kept =
            Self { text: String::with_capacity(64 * headers.len()), ends: Vec::with_capacity(headers.len()) };
        for (index, (name, value)) in headers.iter().enumerate() {
            if headers.get(index + 1).is_some_and(|(next, _)| next == name) {
                continue;
            }
            kept.text.push_str(name);
            let end = kept.text.len();
            write(value, &mut kept.text);
            kept.ends.push((end, kept.text.len()));
        }
        kept
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut start = 0;
        self.ends.iter().map(move |(name, value)| {
            let pair = (&self.text[start..*name], &self.text[*name..*value]);
            start = *value;
            pair
        })
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.ends.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(deserializer)?;
        let pairs = map.iter().map(|(name, value)| (name.as_str(), value)).collect();
        Ok(Self::of(pairs, |value, text| text.push_str(value)))
    }
}

#[cfg(test)]
impl std::ops::Index<&str> for Headers {
    type Output = str;

    fn index(&self, name: &str) -> &str {
        self.iter().find(|(known, _)| *known == name).expect("a header of this name").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_and_the_last_of_each() {
        let headers = vec![("b", "1"), ("a", "x\"y"), ("b", "2"), ("", "")];
        let headers = Headers::of(headers, |value, text| text.push_str(value));
        let json = serde_json::to_string(&headers).unwrap();
        assert_eq!(json, r#"{"":"","a":"x\"y","b":"2"}"#);
        assert_eq!(serde_json::from_str::<Headers>(&json).unwrap(), headers);
        assert_eq!(serde_json::to_string(&Headers::default()).unwrap(), "{}");
    }
}
