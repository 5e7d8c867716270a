//! Reads over values that nobody asks for: checked as the others are, but for keys that clash, and without an allocation.
//!
//! Of a list of tools only the names are needed, and the schemas are most of its bytes.

use super::{Data, Reader, Unreadable};

impl Reader<'_> {
    fn pass(&mut self, depth: usize) -> Result<(), Unreadable> {
        self.count(depth)?;
        match self.byte().ok_or(Unreadable::Syntax)? {
            b'{' => self.pass_map(depth),
            b'[' => self.pass_list(depth),
            b'"' => self.pass_string(),
            b't' => self.word("true", Data::Null).map(drop),
            b'f' => self.word("false", Data::Null).map(drop),
            b'n' => self.word("null", Data::Null).map(drop),
            _ => self.number().map(drop),
        }
    }

    pub(super) fn pass_map(&mut self, depth: usize) -> Result<(), Unreadable> {
        self.pass_all(b'}', |this| {
            this.pass_string()?;
            this.blanks();
            this.take(b':')?;
            this.blanks();
            this.pass(depth + 1)
        })
    }

    pub(super) fn pass_list(&mut self, depth: usize) -> Result<(), Unreadable> {
        self.pass_all(b']', |this| this.pass(depth + 1))
    }

    /// What stands between the bracket here and its end, with commas between.
    fn pass_all(
        &mut self,
        end: u8,
        mut one: impl FnMut(&mut Self) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        self.at += 1;
        self.blanks();
        if self.byte() == Some(end) {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.blanks();
            one(self)?;
            self.blanks();
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(byte) if byte == end => break,
                _ => return Err(Unreadable::Syntax),
            }
        }
        self.at += 1;
        Ok(())
    }

    fn pass_string(&mut self) -> Result<(), Unreadable> {
        self.take(b'"')?;
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            let end = memchr::memchr2(b'"', b'\\', rest).ok_or(Unreadable::Syntax)?;
            if rest[..end].iter().any(|byte| *byte < 0x20) {
                return Err(Unreadable::Syntax);
            }
            self.at += end + 1;
            if rest[end] == b'"' {
                return Ok(());
            }
            self.escape()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Node, Numbers};
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case(r#"{"a":[{"b":1}],"c":"d"}"# => true)]
    #[test_case(r#"{"a":[{"b":1,}]}"# => false; "a comma too much")]
    #[test_case(r#"{"a":[1 2]}"# => false; "no comma")]
    #[test_case(r#"{"a":{"b"}}"# => false; "no value")]
    #[test_case(r#"{"a":{"b":"\q"}}"# => false; "no escape")]
    #[test_case(r#"{"a":{"b":"\ud800"}}"# => false; "half a pair")]
    #[test_case("{\"a\":{\"b\":\"\n\"}}" => false; "a line end in a string")]
    #[test_case(r#"{"a":{"b":01}}"# => false; "a number that is none")]
    #[test_case(r#"{"a":{"b":nul}}"# => false; "a word that is none")]
    #[test_case(r#"{"a":{"b":1}"# => false; "no end")]
    fn what_is_passed_over_is_checked(text: &str) -> bool {
        let outline = Node::outline(text.as_bytes(), Numbers::Any, 1).is_ok();
        assert_eq!(outline, Node::parse(text.as_bytes(), Numbers::Any).is_ok());
        outline
    }

    /// The same spans at the top, whatever is below.
    #[test]
    fn the_top_is_the_same() {
        let text = r#"{"tools":[{"name":"a\u0062","inputSchema":{"x":[1,{"y":"]}\""}]},"annotations":{"readOnlyHint":true}}]}"#;
        let (whole, outline) = (
            Node::parse(text.as_bytes(), Numbers::Any).unwrap(),
            Node::outline(text.as_bytes(), Numbers::Any, 3).unwrap(),
        );
        let item = |root: &Node| {
            let item = &root.get("tools").unwrap().items()[0];
            let span = |key: &str| item.get(key).unwrap().span.clone();
            (
                item.span.clone(),
                item.get("name").unwrap().text().unwrap().to_owned(),
                span("annotations"),
                span("inputSchema"),
            )
        };
        assert_eq!(item(&whole), item(&outline));
        assert!(outline.get("tools").unwrap().items()[0].get("inputSchema").unwrap().entries().is_empty());
    }

    proptest! {
        /// Whatever is read whole can be read over, and nothing that is no JSON.
        #[test]
        fn passes_what_is_json(text in r#"[\[\]{},:"\\a1 ]{0,24}"#, depth in 0usize..3) {
            let outline = Node::outline(text.as_bytes(), Numbers::Any, depth).is_ok();
            prop_assert_eq!(outline, serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }
}
