"""A shop where one can register: Flask, SQLAlchemy, and Duepost in the session's transaction."""

import os

from flask import Flask, Response, jsonify, request
from sqlalchemy import create_engine, delete
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import duepost


class Base(DeclarativeBase):
    """The tables."""


class Account(Base):
    """Somebody who has registered."""

    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


def create_app(database_url: str) -> Flask:
    """Builds the application on a database that `duepost migrate` has seen."""
    app = Flask(__name__)
    engine = create_engine(database_url)
    Base.metadata.create_all(engine)

    @app.post("/accounts")
    def register() -> tuple[Response, int]:
        with Session(engine) as session, session.begin():
            account = Account(email=request.form["email"])
            session.add(account)
            session.flush()
            duepost.schedule_email(
                session,
                kind="welcome",
                address=account.email,
                subject="Welcome",
                body_text="It is good to have you.",
                key=f"welcome-{account.id}",
            )
            return jsonify(id=account.id), 201

    @app.delete("/accounts/<int:account_id>")
    def close(account_id: int) -> Response:
        with Session(engine) as session, session.begin():
            account = session.get_one(Account, account_id)
            receipts = duepost.clear_scheduled_emails_to(session, account.email)
            session.execute(delete(Account).where(Account.id == account_id))
            return jsonify(cleared=[receipt for _, receipt in receipts])

    return app


if __name__ == "__main__":
    create_app(os.environ["SHOP_DATABASE_URL"]).run()
