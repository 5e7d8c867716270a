//! Text into tokens, each with its place.

use super::Mistake;

/// A token and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) at: usize,
    pub(crate) end: usize,
    pub(crate) kind: TokenKind,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TokenKind {
    Ident(String),
    Int(u64),
    Uint(u64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Punct(&'static str),
    End,
}

const PUNCTUATION: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}",
];

/// All tokens, the last of which is [`TokenKind::End`].
pub(crate) fn tokens(text: &str) -> Result<Vec<Token>, Mistake> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        let kind = lexer.token()?;
        let last = kind == TokenKind::End;
        tokens.push(Token { at, end: lexer.at, kind });
        if last {
            return Ok(tokens);
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let blanks = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']).len();
            self.at += blanks;
            if !self.rest().starts_with("//") {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or_else(|| self.rest().len());
        }
    }

    fn token(&mut self) -> Result<TokenKind, Mistake> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(TokenKind::End) };
        if let Some(quoted) = self.quoted()? {
            return Ok(quoted);
        }
        let digit_after_dot = first == '.' && rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        if first.is_ascii_digit() || digit_after_dot {
            return self.number();
        }
        if first == '_' || first.is_ascii_alphabetic() {
            let length = rest.bytes().take_while(|b| *b == b'_' || b.is_ascii_alphanumeric()).count();
            self.at += length;
            return Ok(TokenKind::Ident(rest[..length].to_owned()));
        }
        match PUNCTUATION.iter().find(|punct| rest.starts_with(**punct)) {
            Some(punct) => {
                self.at += punct.len();
                Ok(TokenKind::Punct(punct))
            }
            None => Err(Mistake::new(self.at, format!("syntax error: unexpected {first:?}"))),
        }
    }

    fn number(&mut self) -> Result<TokenKind, Mistake> {
        let (rest, at) = (self.rest(), self.at);
        let bad = |text: &str| Mistake::new(at, format!("{text:?} is not a number that fits"));
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let length = hex.bytes().take_while(u8::is_ascii_hexdigit).count();
            let value = u64::from_str_radix(&hex[..length], 16).map_err(|_| bad(&rest[..length + 2]))?;
            self.at += length + 2;
            return self.suffix(value);
        }
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let mut length = digits(rest);
        let mut float = false;
        if rest[length..].starts_with('.') && digits(&rest[length + 1..]) > 0 {
            length += 1 + digits(&rest[length + 1..]);
            float = true;
        }
        if rest[length..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[length + 1..].starts_with(['+', '-']));
            let exponent = digits(&rest[length + 1 + sign..]);
            if exponent > 0 {
                length += 1 + sign + exponent;
                float = true;
            }
        }
        let number = &rest[..length];
        self.at += length;
        if float {
            let value: f64 = number.parse().map_err(|_| bad(number))?;
            return if value.is_finite() { Ok(TokenKind::Float(value)) } else { Err(bad(number)) };
        }
        let value = number.parse().map_err(|_| bad(number))?;
        self.suffix(value)
    }

    fn suffix(&mut self, value: u64) -> Result<TokenKind, Mistake> {
        if self.rest().starts_with(['u', 'U']) {
            self.at += 1;
            return Ok(TokenKind::Uint(value));
        }
        if self.rest().starts_with(|c: char| c == '_' || c.is_ascii_alphanumeric()) {
            return Err(Mistake::new(self.at, "syntax error: a number followed by a name"));
        }
        Ok(TokenKind::Int(value))
    }

    /// A string or bytes literal, if one starts here.
    fn quoted(&mut self) -> Result<Option<TokenKind>, Mistake> {
        let rest = self.rest();
        let prefix = rest.bytes().take(2).take_while(|b| matches!(b, b'r' | b'R' | b'b' | b'B')).count();
        let (letters, body) = rest.split_at(prefix);
        let Some(quote) = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| body.starts_with(quote))
        else {
            return Ok(None);
        };
        let raw = letters.contains(['r', 'R']);
        let bytes = letters.contains(['b', 'B']);
        let start = self.at;
        self.at += prefix + quote.len();
        let mut out = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                break;
            }
            match rest.chars().next() {
                None => return Err(Mistake::new(start, "syntax error: a string that does not end")),
                Some('\n' | '\r') if quote.len() == 1 => {
                    return Err(Mistake::new(start, "syntax error: a string that does not end on its line"));
                }
                Some('\\') if !raw => self.escape(bytes, &mut out)?,
                Some(c) => {
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    self.at += c.len_utf8();
                }
            }
        }
        if bytes {
            return Ok(Some(TokenKind::Bytes(out)));
        }
        // Every escape of a string is a whole character.
        Ok(Some(TokenKind::Text(String::from_utf8_lossy(&out).into_owned())))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), Mistake> {
        let bad = Mistake::new(self.at, "syntax error: unknown escape in a string");
        let mut chars = self.rest().chars();
        chars.next();
        let letter = chars.next().ok_or_else(|| bad.clone())?;
        let simple = match letter {
            'a' => Some('\x07'),
            'b' => Some('\x08'),
            'f' => Some('\x0c'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\x0b'),
            '\\' | '?' | '"' | '\'' | '`' => Some(letter),
            _ => None,
        };
        if let Some(c) = simple {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            self.at += 2;
            return Ok(());
        }
        let (skip, length, radix) = match letter {
            'x' | 'X' => (2, 2, 16),
            'u' if !bytes => (2, 4, 16),
            'U' if !bytes => (2, 8, 16),
            '0'..='3' => (1, 3, 8),
            _ => return Err(bad),
        };
        let digits = self.rest().get(skip..skip + length).ok_or_else(|| bad.clone())?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad);
        }
        let code = u32::from_str_radix(digits, radix).map_err(|_| bad.clone())?;
        match (bytes, u8::try_from(code)) {
            (true, Ok(byte)) => out.push(byte),
            (true, Err(_)) => return Err(bad),
            (false, _) => {
                let c = char::from_u32(code).ok_or(bad)?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        self.at += skip + length;
        Ok(())
    }
}
