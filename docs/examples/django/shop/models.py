"""The tables."""

from django.db import models


class Account(models.Model):
    """Somebody who has registered."""

    email = models.EmailField(unique=True)
    name = models.CharField(max_length=100)
