"""Hugging Face: conversion of the names and orientations of parameters."""
