"""The addresses."""

from django.urls import path

from shop import views

urlpatterns = [path("register", views.register), path("accounts/<int:pk>/close", views.close)]
