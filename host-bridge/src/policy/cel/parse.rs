//! Tokens into a tree, by recursive descent along CEL's grammar.

use super::{
    Mistake,
    ast::{Ast, Kind, Operator},
    lex::{Token, TokenKind, tokens},
};

/// Levels of a tree. cel-go allows 250 recursions of its parser, which count several to a level.
const HEIGHT: usize = 64;

/// Words that CEL keeps for itself.
const WORDS: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Parses a whole expression.
pub(crate) fn parse(text: &str) -> Result<Ast, Mistake> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0 };
    let tree = parser.expression()?;
    match parser.peek() {
        TokenKind::End => Ok(tree),
        _ => Err(parser.unexpected()),
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    depth: usize,
}

type Parsed = Result<Ast, Mistake>;

impl Parser {
    fn token(&self) -> &Token {
        // The last token is the end, which is never passed.
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> &TokenKind {
        &self.token().kind
    }

    fn at(&self) -> usize {
        self.token().at
    }

    fn unexpected(&self) -> Mistake {
        let what = match self.peek() {
            TokenKind::End => "the end".to_owned(),
            TokenKind::Ident(name) => format!("{name:?}"),
            TokenKind::Punct(punct) => format!("{punct:?}"),
            TokenKind::Text(_) | TokenKind::Bytes(_) => "a string".to_owned(),
            TokenKind::Int(_) | TokenKind::Uint(_) | TokenKind::Float(_) => "a number".to_owned(),
        };
        Mistake::new(self.at(), format!("syntax error: unexpected {what}"))
    }

    fn take(&mut self, punct: &str) -> bool {
        let is = matches!(self.peek(), TokenKind::Punct(found) if *found == punct);
        self.next += usize::from(is);
        is
    }

    fn expect(&mut self, punct: &str) -> Result<(), Mistake> {
        if self.take(punct) {
            return Ok(());
        }
        let mut mistake = self.unexpected();
        mistake.text.push_str(&format!(", expected {punct:?}"));
        Err(mistake)
    }

    fn node(&self, at: usize, below: usize, kind: Kind) -> Parsed {
        if below + 1 > HEIGHT {
            return Err(Mistake::new(at, format!("nested deeper than {HEIGHT} levels")));
        }
        let end =
            self.next.checked_sub(1).and_then(|last| self.tokens.get(last)).map_or(at, |token| token.end);
        Ok(Ast { at, end, height: below + 1, kind })
    }

    fn expression(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > HEIGHT {
            return Err(Mistake::new(self.at(), format!("nested deeper than {HEIGHT} levels")));
        }
        let tree = self.conditional();
        self.depth -= 1;
        tree
    }

    fn conditional(&mut self) -> Parsed {
        let condition = self.any_of()?;
        if !self.take("?") {
            return Ok(condition);
        }
        let yes = self.any_of()?;
        self.expect(":")?;
        let no = self.expression()?;
        let (at, below) = (condition.at, condition.height.max(yes.height).max(no.height));
        self.node(at, below, Kind::If(Box::new((condition, yes, no))))
    }

    fn any_of(&mut self) -> Parsed {
        self.chain("||", Self::all_of, Kind::Or)
    }

    fn all_of(&mut self) -> Parsed {
        self.chain("&&", |this| this.relation(), Kind::And)
    }

    /// One tree for a chain of any length, so that its length is not its depth.
    fn chain(&mut self, punct: &str, part: fn(&mut Self) -> Parsed, kind: fn(Vec<Ast>) -> Kind) -> Parsed {
        let first = part(self)?;
        let (at, mut below) = (first.at, first.height);
        let mut parts = vec![first];
        while self.take(punct) {
            let next = part(self)?;
            below = below.max(next.height);
            parts.push(next);
        }
        match parts.pop() {
            Some(only) if parts.is_empty() => Ok(only),
            last => {
                parts.extend(last);
                self.node(at, below, kind(parts))
            }
        }
    }

    fn relation(&mut self) -> Parsed {
        use Operator as O;
        const RELATIONS: [(&str, Operator); 6] = [
            ("==", O::Equal),
            ("!=", O::NotEqual),
            ("<=", O::LessEqual),
            (">=", O::GreaterEqual),
            ("<", O::Less),
            (">", O::Greater),
        ];
        let mut left = self.sum()?;
        loop {
            let is_in = matches!(self.peek(), TokenKind::Ident(name) if name == "in");
            let operator = if is_in {
                self.next += 1;
                O::In
            } else {
                match RELATIONS.into_iter().find(|(punct, _)| self.take(punct)) {
                    Some((_, operator)) => operator,
                    None => return Ok(left),
                }
            };
            let right = self.sum()?;
            left = self.binary(operator, left, right)?;
        }
    }

    fn sum(&mut self) -> Parsed {
        self.left(Self::product, &[("+", Operator::Add), ("-", Operator::Subtract)])
    }

    fn product(&mut self) -> Parsed {
        const OPERATORS: [(&str, Operator); 3] =
            [("*", Operator::Multiply), ("/", Operator::Divide), ("%", Operator::Remainder)];
        self.left(Self::unary, &OPERATORS)
    }

    fn left(&mut self, part: fn(&mut Self) -> Parsed, operators: &[(&'static str, Operator)]) -> Parsed {
        let mut left = part(self)?;
        while let Some((_, operator)) = operators.iter().find(|(punct, _)| self.take(punct)) {
            let right = part(self)?;
            left = self.binary(*operator, left, right)?;
        }
        Ok(left)
    }

    fn binary(&self, operator: Operator, left: Ast, right: Ast) -> Parsed {
        let (at, below) = (left.at, left.height.max(right.height));
        self.node(at, below, Kind::Binary(operator, Box::new((left, right))))
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        if self.take("!") {
            let mut nots = 1;
            while self.take("!") {
                nots += 1;
            }
            let inner = self.member()?;
            let below = inner.height;
            let once = self.node(at, below, Kind::Not(Box::new(inner)))?;
            return if nots % 2 == 1 {
                Ok(once)
            } else {
                self.node(at, once.height, Kind::Not(Box::new(once)))
            };
        }
        if !self.take("-") {
            return self.member();
        }
        let mut minuses = 1;
        while self.take("-") {
            minuses += 1;
        }
        let negative = minuses % 2 == 1;
        // The smallest integer has no positive counterpart.
        if let (true, TokenKind::Int(value)) = (minuses == 1, self.peek()) {
            let value = i64::try_from(-i128::from(*value))
                .map_err(|_| Mistake::new(at, "an integer that does not fit in 64 bits"))?;
            self.next += 1;
            let literal = self.node(at, 0, Kind::Int(value))?;
            return self.postfix(literal);
        }
        if let (true, TokenKind::Float(value)) = (minuses == 1, self.peek()) {
            let value = -*value;
            self.next += 1;
            let literal = self.node(at, 0, Kind::Double(value))?;
            return self.postfix(literal);
        }
        let inner = self.member()?;
        let below = inner.height;
        let once = self.node(at, below, Kind::Negate(Box::new(inner)))?;
        if negative { Ok(once) } else { self.node(at, once.height, Kind::Negate(Box::new(once))) }
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.postfix(primary)
    }

    fn postfix(&mut self, mut target: Ast) -> Parsed {
        loop {
            let at = target.at;
            if self.take(".") {
                if self.take("?") {
                    return Err(Mistake::new(self.at(), "optional fields (.?) are not supported"));
                }
                let name = self.name()?;
                if self.take("(") {
                    let args = self.list(")")?;
                    let below = height(&args).max(target.height);
                    let kind = Kind::Call { target: Some(Box::new(target)), name, args };
                    target = self.node(at, below, kind)?;
                } else {
                    let below = target.height;
                    target = self.node(at, below, Kind::Field(Box::new(target), name))?;
                }
            } else if self.take("[") {
                if self.take("?") {
                    return Err(Mistake::new(self.at(), "optional indexing ([?) is not supported"));
                }
                let index = self.expression()?;
                self.expect("]")?;
                let below = target.height.max(index.height);
                target = self.node(at, below, Kind::Index(Box::new(target), Box::new(index)))?;
            } else if matches!(self.peek(), TokenKind::Punct("{")) {
                return Err(Mistake::new(self.at(), "messages are not supported"));
            } else {
                return Ok(target);
            }
        }
    }

    fn name(&mut self) -> Result<String, Mistake> {
        let TokenKind::Ident(name) = self.peek().clone() else { return Err(self.unexpected()) };
        self.next += 1;
        Ok(name)
    }

    fn list(&mut self, end: &str) -> Result<Vec<Ast>, Mistake> {
        let mut items = Vec::new();
        while !self.take(end) {
            items.push(self.expression()?);
            if !self.take(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(items)
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        let leaf = match self.peek().clone() {
            TokenKind::Int(value) => Kind::Int(
                i64::try_from(value)
                    .map_err(|_| Mistake::new(at, "an integer that does not fit in 64 bits"))?,
            ),
            TokenKind::Uint(value) => Kind::Uint(value),
            TokenKind::Float(value) => Kind::Double(value),
            TokenKind::Text(text) => Kind::Text(text),
            TokenKind::Bytes(bytes) => Kind::Bytes(bytes),
            TokenKind::Ident(name) => return self.named(at, &name),
            TokenKind::Punct("(") => {
                self.next += 1;
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            TokenKind::Punct("[") => {
                self.next += 1;
                let items = self.list("]")?;
                return self.node(at, height(&items), Kind::List(items));
            }
            TokenKind::Punct("{") => {
                self.next += 1;
                return self.map(at);
            }
            TokenKind::Punct(_) | TokenKind::End => return Err(self.unexpected()),
        };
        self.next += 1;
        self.node(at, 0, leaf)
    }

    fn named(&mut self, at: usize, name: &str) -> Parsed {
        if WORDS.contains(&name) || name == "in" {
            return Err(self.unexpected());
        }
        self.next += 1;
        if self.take("(") {
            let args = self.list(")")?;
            return self.node(at, height(&args), Kind::Call { target: None, name: name.to_owned(), args });
        }
        let kind = match name {
            "true" => Kind::Bool(true),
            "false" => Kind::Bool(false),
            "null" => Kind::Null,
            _ => Kind::Ident(name.to_owned()),
        };
        self.node(at, 0, kind)
    }

    fn map(&mut self, at: usize) -> Parsed {
        let (mut entries, mut below) = (Vec::new(), 0);
        while !self.take("}") {
            let key = self.expression()?;
            self.expect(":")?;
            let value = self.expression()?;
            below = below.max(key.height).max(value.height);
            entries.push((key, value));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        self.node(at, below, Kind::Map(entries))
    }
}

fn height(items: &[Ast]) -> usize {
    items.iter().map(|item| item.height).max().unwrap_or(0)
}
