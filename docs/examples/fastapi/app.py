"""A shop where one can register: FastAPI, asyncpg, and Duepost in the connection's transaction."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
from fastapi import Depends, FastAPI, Request

import duepost.aio


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens the pool, on a database that `duepost migrate` has seen."""
    async with asyncpg.create_pool(os.environ["SHOP_DATABASE_URL"]) as app.state.pool:
        await app.state.pool.execute(
            "CREATE TABLE IF NOT EXISTS account (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, email text UNIQUE)"
        )
        yield


app = FastAPI(lifespan=lifespan)


async def transaction(request: Request) -> AsyncIterator[asyncpg.Connection]:
    """A connection with a transaction, which commits if the request succeeds."""
    async with request.app.state.pool.acquire() as connection, connection.transaction():
        yield connection


Transaction = Annotated[asyncpg.Connection, Depends(transaction)]


@app.post("/accounts", status_code=201)
async def register(email: str, connection: Transaction) -> dict[str, int]:
    """Registers somebody: the account and its email are committed together, or not at all."""
    account = await connection.fetchval("INSERT INTO account (email) VALUES ($1) RETURNING id", email)
    await duepost.aio.schedule_email(
        connection,
        kind="welcome",
        address=email,
        subject="Welcome",
        body_text="It is good to have you.",
        key=f"welcome-{account}",
    )
    return {"id": account}


@app.delete("/accounts/{account}")
async def close(account: int, connection: Transaction) -> dict[str, list[str]]:
    """Closes an account: what was to be sent to it is cleared."""
    email = await connection.fetchval("DELETE FROM account WHERE id = $1 RETURNING email", account)
    receipts = await duepost.aio.clear_scheduled_emails_to(connection, email)
    return {"cleared": [receipt for _, receipt in receipts]}
