"""Registering, and closing the account."""

from datetime import timedelta

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

import duepost
from shop.models import Account


@csrf_exempt  # for this example; a form has Django's token
@require_POST
def register(request: HttpRequest) -> JsonResponse:
    """Registers somebody: the account and its emails are committed together, or not at all."""
    with transaction.atomic(), connection.cursor() as cursor:
        account = Account.objects.create(email=request.POST["email"], name=request.POST["name"])
        whom = {"address": account.email, "context": {"name": account.name}}
        duepost.schedule_email(cursor, kind="welcome", template="welcome", key=f"welcome-{account.pk}", **whom)
        tomorrow = timezone.now() + timedelta(days=1)
        duepost.schedule_email(cursor, kind="first_steps", template="first_steps", scheduled_at=tomorrow, **whom)
    return JsonResponse({"id": account.pk}, status=201)


@csrf_exempt
@require_POST
def close(_request: HttpRequest, pk: int) -> JsonResponse:
    """Closes an account: what was to be sent to it is cleared."""
    with transaction.atomic(), connection.cursor() as cursor:
        account = Account.objects.select_for_update().get(pk=pk)
        receipts = duepost.clear_scheduled_emails_to(cursor, account.email)
        account.delete()
    return JsonResponse({"cleared": [receipt for _, receipt in receipts]})
