"""The settings: PostgreSQL, Duepost's app, and its email backend."""

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "for development")
ALLOWED_HOSTS = ["localhost", "testserver"]
INSTALLED_APPS = ["duepost.django", "shop"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ.get("PGDATABASE", "shop"),
        "USER": os.environ.get("PGUSER", "postgres"),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "HOST": os.environ.get("PGHOST", "127.0.0.1"),
        "PORT": os.environ.get("PGPORT", "5432"),
    }
}
# What Django sends by itself, such as a link to set a new password, is scheduled too.
EMAIL_BACKEND = "duepost.django.EmailBackend"
DEFAULT_FROM_EMAIL = "Shop <shop@example.com>"
