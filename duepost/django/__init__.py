"""Duepost in a Django project: the schema by `manage.py migrate`, and an email backend that schedules.

INSTALLED_APPS = [..., "duepost.django"]
EMAIL_BACKEND = "duepost.django.EmailBackend"
"""

from duepost.django.backend import EmailBackend

__all__ = ["EmailBackend"]
