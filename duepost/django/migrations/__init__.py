"""Django's record of Duepost's schema. What changes in it later is applied after each `manage.py migrate`."""
